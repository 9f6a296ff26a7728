//! Globs of absolute paths, matched folder by folder, so that a walk descends only where a match can still come.
//!
//! `*`, `?`, `[…]` and `{…}` never match a `/`; a component `**` matches any number of folders, none too.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use logmesh_types::limits::MAX_PATH_BYTES;

/// The most components of a glob: its matching state is one bit each.
const MAX_COMPONENTS: usize = 120;

/// Why a text is not a glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It has no characters.
    #[error("is empty; write a path such as /var/log/nginx/*.log")]
    Empty,
    /// It is longer than any path.
    #[error("is longer than {MAX_PATH_BYTES} bytes, or has more than {MAX_COMPONENTS} parts")]
    TooLong,
    /// It doesn't begin at the root.
    #[error("{0:?} is not an absolute path; begin it with '/'")]
    Relative(String),
    /// It has a part that no found path has.
    #[error("{0:?} has a part '.' or '..' or an empty one, or a NUL, which never matches; write the path out")]
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
}

/// A compiled glob of absolute paths.
#[derive(Debug, Clone)]
pub struct PathGlob {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(std::ffi::OsString),
    Pattern(GlobMatcher),
    AnyDepth,
}

/// Which parts of a glob may match the next component: bit i for part i, bit n for "all matched".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress(u128);

impl Progress {
    /// True if no path that begins so can match.
    pub fn is_dead(self) -> bool {
        self.0 == 0
    }
}

impl PathGlob {
    /// Compiles a glob. It must be absolute, without `.` and `..`, and no brace group may hold a `/`.
    ///
    /// # Errors
    /// If it is no glob, relative, too long, or could never match.
    pub fn new(text: &str) -> Result<Self, GlobError> {
        if text.is_empty() {
            return Err(GlobError::Empty);
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(GlobError::Relative(text.chars().take(200).collect()));
        };
        if text.len() > MAX_PATH_BYTES || rest.split('/').count() > MAX_COMPONENTS {
            return Err(GlobError::TooLong);
        }
        let mut parts: Vec<Part> = Vec::new();
        for component in rest.split('/') {
            let part = Part::new(component, text)?;
            // `**/**` is `**`: nothing is gained by more of them.
            if !(matches!(part, Part::AnyDepth) && matches!(parts.last(), Some(Part::AnyDepth))) {
                parts.push(part);
            }
        }
        Ok(Self { text: text.to_owned(), parts })
    }

    /// The glob as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The folder in which every match lies: the leading components without wildcards, never the last.
    pub fn static_root(&self) -> PathBuf {
        let mut root = PathBuf::from("/");
        for part in &self.parts[..self.parts.len() - 1] {
            match part {
                Part::Literal(name) => root.push(name),
                _ => break,
            }
        }
        root
    }

    /// True if the whole path matches. The path must be absolute and normal.
    pub fn matches(&self, path: &Path) -> bool {
        self.progress(path).is_some_and(|progress| self.accepts(progress))
    }

    /// How far the components of `path` lead; `None` if it isn't absolute and normal.
    pub fn progress(&self, path: &Path) -> Option<Progress> {
        let mut progress = self.closure(1);
        let mut components = path.components();
        if components.next() != Some(Component::RootDir) {
            return None;
        }
        for component in components {
            let Component::Normal(name) = component else { return None };
            progress = self.step(progress, name);
        }
        Some(progress)
    }

    /// The progress after one more component.
    pub fn step(&self, progress: Progress, name: &OsStr) -> Progress {
        let mut next = 0;
        for (index, part) in self.parts.iter().enumerate() {
            if progress.0 & (1 << index) == 0 {
                continue;
            }
            next |= match part {
                Part::AnyDepth => 1 << index,
                Part::Literal(literal) if literal == name => 1 << (index + 1),
                Part::Pattern(pattern) if pattern.is_match(name) => 1 << (index + 1),
                _ => 0,
            };
        }
        self.closure(next)
    }

    /// True if the components so far are a match.
    pub fn accepts(&self, progress: Progress) -> bool {
        progress.0 & (1 << self.parts.len()) != 0
    }

    /// True if nothing deeper can match.
    pub fn is_end(&self, progress: Progress) -> bool {
        progress.0 & !(1 << self.parts.len()) == 0
    }

    /// The only name that can lead on from here, if there is only one: then a folder needn't be listed.
    pub fn only_next(&self, progress: Progress) -> Option<&OsStr> {
        let index = progress.0.trailing_zeros() as usize;
        match self.parts.get(index) {
            Some(Part::Literal(name)) if progress.0.is_power_of_two() => Some(name),
            _ => None,
        }
    }

    /// `**` may match nothing: where it may come next, so may what follows it.
    fn closure(&self, mut bits: u128) -> Progress {
        for (index, part) in self.parts.iter().enumerate() {
            if matches!(part, Part::AnyDepth) && bits & (1 << index) != 0 {
                bits |= 1 << (index + 1);
            }
        }
        Progress(bits)
    }
}

impl Part {
    /// One component of the glob `text`.
    fn new(component: &str, text: &str) -> Result<Self, GlobError> {
        match component {
            "**" => return Ok(Self::AnyDepth),
            "" | "." | ".." => return Err(GlobError::NotPlain(text.to_owned())),
            _ if component.contains('\0') => return Err(GlobError::NotPlain(text.to_owned())),
            _ if component.contains("**") => return Err(GlobError::PartialRecursion(text.to_owned())),
            _ => {}
        }
        if !component.contains(['*', '?', '[', '{', '\\']) {
            return Ok(Self::Literal(component.into()));
        }
        compile(component, text).map(Self::Pattern)
    }
}

fn compile(component: &str, text: &str) -> Result<GlobMatcher, GlobError> {
    let glob = GlobBuilder::new(component).literal_separator(true).backslash_escape(true).build();
    let glob = glob.map_err(|error| GlobError::Syntax { glob: text.to_owned(), reason: error.kind().to_string() })?;
    Ok(glob.compile_matcher())
}

/// What a rule leaves out: a file name (`*.gz`), or a path when the glob holds a `/`.
#[derive(Debug, Clone)]
pub enum Exclude {
    /// Matched against the file's name.
    Name(GlobMatcher),
    /// Matched against the whole path.
    Path(PathGlob),
}

impl Exclude {
    /// Compiles an exclude glob; one that holds a `/` and isn't absolute may match in any folder.
    ///
    /// # Errors
    /// As [`PathGlob::new`].
    pub fn new(text: &str) -> Result<Self, GlobError> {
        if text.contains('/') {
            let absolute = if text.starts_with('/') { text.to_owned() } else { format!("/**/{text}") };
            return PathGlob::new(&absolute).map(Self::Path);
        }
        match text {
            "" => Err(GlobError::Empty),
            _ if text.len() > MAX_PATH_BYTES => Err(GlobError::TooLong),
            _ => compile(text, text).map(Self::Name),
        }
    }

    /// True if the path is left out.
    pub fn matches(&self, path: &Path) -> bool {
        match self {
            Self::Name(glob) => path.file_name().is_some_and(|name| glob.is_match(name)),
            Self::Path(glob) => glob.matches(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        PathGlob::new(glob).unwrap().matches(Path::new(path))
    }

    #[test]
    fn stars_stay_in_a_folder_and_double_stars_cross() {
        assert!(matches("/var/log/*.log", "/var/log/a.log"));
        assert!(!matches("/var/log/*.log", "/var/log/x/a.log"));
        assert!(matches("/var/log/**/*.log", "/var/log/a.log"));
        assert!(matches("/var/log/**/*.log", "/var/log/x/y/a.log"));
        assert!(matches("/var/log/**", "/var/log/x/y"));
        assert!(!matches("/var/log/**", "/var/logs/x"));
        assert!(matches("/a/{b,c}?/[0-9]", "/a/cx/7"));
        assert!(matches("/a/b c/ü.log", "/a/b c/ü.log"));
        assert!(!matches("/var/log/**", "/var/log/../x"));
    }

    #[test]
    fn globs_that_could_never_match_are_refused() {
        let error = |glob: &str| PathGlob::new(glob).unwrap_err();
        assert_eq!(error(""), GlobError::Empty);
        assert!(matches!(error("var/log/*"), GlobError::Relative(_)));
        assert!(matches!(error("**/x"), GlobError::Relative(_)));
        for never in ["/", "/var/../etc/*", "/a/./b", "/var//x", "/var/log/", "/a\0b"] {
            assert!(matches!(error(never), GlobError::NotPlain(_)), "{never:?}");
        }
        assert!(matches!(error("/var/**.log"), GlobError::PartialRecursion(_)));
        for broken in ["/var/[a", "/var/{a", "/a/{b,c/d}"] {
            assert!(matches!(error(broken), GlobError::Syntax { .. }), "{broken:?}");
        }
        assert_eq!(error(&"/a".repeat(200)), GlobError::TooLong);
        assert_eq!(error(&format!("/{}", "a".repeat(5000))), GlobError::TooLong);
    }

    #[test]
    fn many_double_stars_cost_nothing() {
        let bomb = "/**/a".repeat(50);
        assert!(!matches(&bomb, &"/a".repeat(49)));
        assert!(matches(&bomb, &"/a".repeat(500)));
    }

    #[test]
    fn the_static_root_ends_before_the_first_wildcard() {
        assert_eq!(PathGlob::new("/var/log/**").unwrap().static_root(), Path::new("/var/log"));
        assert_eq!(PathGlob::new("/var/log/a.log").unwrap().static_root(), Path::new("/var/log"));
        assert_eq!(PathGlob::new("/*/x").unwrap().static_root(), Path::new("/"));
    }

    #[test]
    fn excludes_match_names_or_paths() {
        assert!(Exclude::new("*.gz").unwrap().matches(Path::new("/a/b.gz")));
        assert!(Exclude::new("old/*.log").unwrap().matches(Path::new("/a/old/b.log")));
        assert!(!Exclude::new("/old/*.log").unwrap().matches(Path::new("/a/old/b.log")));
        assert!(Exclude::new("**/tmp/*").unwrap().matches(Path::new("/x/tmp/a")));
        assert!(!Exclude::new("*.gz").unwrap().matches(Path::new("/x.gz/a")), "a name says nothing about folders");
        for bad in ["", "[", "x/../y"] {
            assert!(Exclude::new(bad).is_err(), "{bad:?}");
        }
    }
}
