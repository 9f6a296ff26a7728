//! Globs over absolute paths.
//!
//! `*` and `?` stay within one folder, `[a-z]` and `{a,b}` are as in a shell, `**` stands for any number of folders
//! and for none, so `/var/log/**/*.log` also matches `/var/log/a.log`. Paths are matched as bytes.

use std::path::{Path, PathBuf};

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};
use logmesh_types::limits::MAX_PATH_BYTES;

/// Why a text is not a glob that a rule can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It has no characters.
    #[error("is empty; write a path such as /var/log/nginx/*.log")]
    Empty,
    /// It is longer than any path.
    #[error("is longer than {MAX_PATH_BYTES} bytes")]
    TooLong,
    /// It doesn't begin at the root.
    #[error("{0:?} is not an absolute path; begin it with '/'")]
    Relative(String),
    /// It has a part that no found path has.
    #[error("{0:?} has a part '.' or '..' or an empty one, which never matches; write the path out")]
    NotPlain(String),
    /// `**` together with other characters would mean no more than `*`.
    #[error("{0:?} has '**' beside other characters; write it as a folder of its own, such as /var/log/**/*.log")]
    PartialRecursion(String),
    /// It breaks the syntax of globs.
    #[error("{glob:?} is not a glob: {reason}")]
    Syntax {
        /// The text.
        glob: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The globs together need too much memory.
    #[error("the globs together are too large: {0}")]
    TooLarge(String),
}

/// One glob of absolute paths.
#[derive(Clone, Debug)]
pub struct PathGlob {
    glob: Glob,
    base: PathBuf,
    depth: Option<usize>,
}

impl PathGlob {
    /// Reads a glob that begins at the root.
    ///
    /// # Errors
    /// When it is no glob, relative, too long, or could never match.
    pub fn new(text: &str) -> Result<Self, GlobError> {
        check_text(text)?;
        if !text.starts_with('/') {
            return Err(GlobError::Relative(text.to_owned()));
        }
        let parts: Vec<&str> = text[1..].split('/').collect();
        let literal = parts.iter().take(parts.len() - 1).take_while(|part| !part.contains(is_special)).count();
        let base = Path::new("/").join(parts[..literal].join("/"));
        // A '/' within braces makes the number of folders vary; then nothing is known of it.
        let fixed = !parts.contains(&"**") && !text.contains('{');
        Ok(Self { glob: build(text)?, base, depth: fixed.then_some(parts.len()) })
    }

    /// The deepest folder that holds every path the glob can match: where a search begins.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// How many parts each matching path has (`/a/b` has two), or none if that varies.
    pub fn depth(&self) -> Option<usize> {
        self.depth
    }

    /// The glob as it was written.
    pub fn as_str(&self) -> &str {
        self.glob.glob()
    }
}

/// The globs of a rule: what it takes and, of that, what it leaves.
#[derive(Clone, Debug)]
pub struct PathSet {
    globs: Vec<PathGlob>,
    take: GlobSet,
    leave: GlobSet,
    leave_names: GlobSet,
}

impl PathSet {
    /// Puts together globs that were read with [`PathGlob::new`] and checked with [`check_exclude`].
    pub(crate) fn new(globs: Vec<PathGlob>, exclude: &[String]) -> Result<Self, GlobError> {
        let (paths, names): (Vec<&String>, Vec<&String>) = exclude.iter().partition(|glob| glob.contains('/'));
        Ok(Self {
            take: set(globs.iter().map(|glob| Ok(glob.glob.clone())))?,
            leave: set(paths.into_iter().map(|glob| build(glob)))?,
            leave_names: set(names.into_iter().map(|glob| build(glob)))?,
            globs,
        })
    }

    /// True if the rule takes a file of this absolute path.
    pub fn matches(&self, path: &Path) -> bool {
        self.take.is_match(path)
            && !self.leave.is_match(path)
            && !path.file_name().is_some_and(|name| self.leave_names.is_match(Path::new(name)))
    }

    /// The globs, in the order in which they are written.
    pub fn globs(&self) -> &[PathGlob] {
        &self.globs
    }
}

/// Checks a glob of `exclude`: absolute, or from `**/` on, or the pattern of a file's name.
pub(crate) fn check_exclude(text: &str) -> Result<(), GlobError> {
    check_text(text)?;
    if text.contains('/') && !text.starts_with('/') && !text.starts_with("**/") {
        return Err(GlobError::Relative(text.to_owned()));
    }
    build(text).map(drop)
}

fn check_text(text: &str) -> Result<(), GlobError> {
    if text.is_empty() {
        return Err(GlobError::Empty);
    }
    if text.len() > MAX_PATH_BYTES {
        return Err(GlobError::TooLong);
    }
    let parts = text.strip_prefix('/').unwrap_or(text).split('/');
    for part in parts {
        if matches!(part, "" | "." | "..") {
            return Err(GlobError::NotPlain(text.to_owned()));
        }
        if part.contains("**") && part != "**" {
            return Err(GlobError::PartialRecursion(text.to_owned()));
        }
    }
    Ok(())
}

fn is_special(c: char) -> bool {
    matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | '\\')
}

fn build(text: &str) -> Result<Glob, GlobError> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .backslash_escape(true)
        .build()
        .map_err(|error| GlobError::Syntax { glob: text.to_owned(), reason: error.kind().to_string() })
}

fn set(globs: impl Iterator<Item = Result<Glob, GlobError>>) -> Result<GlobSet, GlobError> {
    let mut builder = GlobSetBuilder::new();
    for glob in globs {
        builder.add(glob?);
    }
    builder.build().map_err(|error| GlobError::TooLarge(error.kind().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(take: &[&str], leave: &[&str]) -> PathSet {
        let globs = take.iter().map(|glob| PathGlob::new(glob).unwrap()).collect();
        let leave: Vec<String> = leave.iter().map(|glob| (*glob).to_owned()).collect();
        leave.iter().for_each(|glob| check_exclude(glob).unwrap());
        PathSet::new(globs, &leave).unwrap()
    }

    fn takes(set: &PathSet, path: &str) -> bool {
        set.matches(Path::new(path))
    }

    #[test]
    fn two_stars_also_match_no_folder() {
        let set = paths(&["/var/log/**/*.log"], &[]);
        for path in ["/var/log/a.log", "/var/log/x/a.log", "/var/log/x/y/a.log"] {
            assert!(takes(&set, path), "{path}");
        }
        assert!(!takes(&set, "/var/logs/a.log"));
        assert!(takes(&paths(&["/var/log/**"], &[]), "/var/log/a/b"));
    }

    #[test]
    fn one_star_stays_in_its_folder() {
        let set = paths(&["/var/log/*.log", "/srv/app-?/{out,err}.[0-9]"], &[]);
        assert!(takes(&set, "/var/log/a.log"));
        assert!(!takes(&set, "/var/log/x/a.log"));
        assert!(takes(&set, "/srv/app-1/err.7"));
        assert!(!takes(&set, "/srv/app-/1/err.7"));
    }

    #[test]
    fn excludes_match_names_or_whole_paths() {
        let set = paths(&["/var/log/**"], &["*.gz", "/var/log/audit/**", "**/tmp/*"]);
        assert!(takes(&set, "/var/log/a.log"));
        for path in ["/var/log/x/a.gz", "/var/log/audit/a", "/var/log/x/tmp/a"] {
            assert!(!takes(&set, path), "{path}");
        }
        assert!(takes(&set, "/var/log/x.gz/a"), "a name's pattern says nothing about folders");
    }

    #[test]
    fn the_base_is_where_a_search_begins() {
        let base = |glob: &str| {
            let glob = PathGlob::new(glob).unwrap();
            (glob.base().to_str().unwrap().to_owned(), glob.depth())
        };
        assert_eq!(base("/var/log/nginx/access*.log"), ("/var/log/nginx".into(), Some(4)));
        assert_eq!(base("/var/log/app.log"), ("/var/log".into(), Some(3)));
        assert_eq!(base("/var/*/x/a.log"), ("/var".into(), Some(4)));
        assert_eq!(base("/var/log/**"), ("/var/log".into(), None));
        assert_eq!(base("/{a,b/c}/x"), ("/".into(), None));
        assert_eq!(base("/*"), ("/".into(), Some(1)));
    }

    #[test]
    fn globs_that_could_never_match_are_refused() {
        let error = |glob: &str| PathGlob::new(glob).unwrap_err();
        assert_eq!(error(""), GlobError::Empty);
        assert!(matches!(error("var/log/*"), GlobError::Relative(_)));
        assert!(matches!(error("**/x"), GlobError::Relative(_)));
        assert!(matches!(error("/var/../etc/*"), GlobError::NotPlain(_)));
        assert!(matches!(error("/var//x"), GlobError::NotPlain(_)));
        assert!(matches!(error("/var/log/"), GlobError::NotPlain(_)));
        assert!(matches!(error("/var/**.log"), GlobError::PartialRecursion(_)));
        assert!(matches!(error("/var/[a"), GlobError::Syntax { .. }));
        assert!(matches!(error("/var/{a"), GlobError::Syntax { .. }));
        assert_eq!(error(&format!("/{}", "a".repeat(5000))), GlobError::TooLong);
        assert!(matches!(check_exclude("x/y").unwrap_err(), GlobError::Relative(_)));
    }
}
