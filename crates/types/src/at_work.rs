//! Which file a thread works on, so that a panic in the library that reads it can name it. Some panic on bytes that they
//! didn't write, and a release build aborts on a panic: no error is made of it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

thread_local! {
    static FILE: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Does some work on a file. A panic on the way leaves the file named only until the stack is unwound.
pub fn on<T>(file: &Path, work: impl FnOnce() -> T) -> T {
    struct Before(Option<PathBuf>);
    impl Drop for Before {
        fn drop(&mut self) {
            FILE.set(self.0.take());
        }
    }
    let _before = Before(FILE.replace(Some(file.to_owned())));
    work()
}

/// The file that this thread works on.
pub fn file() -> Option<PathBuf> {
    FILE.with_borrow(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_named_while_it_is_worked_on() {
        let names = on(Path::new("a"), || [on(Path::new("b"), file), file()]);
        assert_eq!(names, [Some("b".into()), Some("a".into())]);
        assert!(std::panic::catch_unwind(|| on(Path::new("a"), || panic!("on purpose"))).is_err());
        assert_eq!(file(), None);
    }
}
