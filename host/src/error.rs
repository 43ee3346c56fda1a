//! The one error type: what was tried, on what, the errno by name, and what to do about it.

use std::fmt;

/// A failure a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    what: String,
    errno: Option<i32>,
    remedy: Option<String>,
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure that no system call reported.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), errno: None, remedy: None }
    }

    /// A system call's failure, with its error number as `errno` holds it now.
    pub fn last_os(what: impl Into<String>) -> Self {
        Self::os(what, &std::io::Error::last_os_error())
    }

    /// A system call's failure.
    pub fn os(what: impl Into<String>, error: &std::io::Error) -> Self {
        Self { what: what.into(), errno: error.raw_os_error(), remedy: None }
    }

    /// What the user can do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// One more thing that the user can do.
    #[must_use]
    pub fn remedy_also(self, remedy: &str) -> Self {
        let both =
            self.remedy.as_ref().map_or_else(|| remedy.to_string(), |first| format!("{first}; or {remedy}"));
        self.remedy(both)
    }

    /// What failed and why, without what to do about it.
    #[must_use]
    pub fn reason(&self) -> String {
        Self { remedy: None, ..self.clone() }.to_string()
    }

    /// All of it in one line, for a list of notes.
    #[must_use]
    pub fn in_a_line(&self) -> String {
        self.to_string().replace("\n  ", "; ")
    }

    /// A remedy for one error number only.
    #[must_use]
    pub fn remedy_for(self, errno: i32, remedy: &str) -> Self {
        if self.errno == Some(errno) { self.remedy(remedy) } else { self }
    }

    /// The error number, if a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.errno
    }

    /// This failure, told from further out: `context: what`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(errno) = self.errno {
            match errno_name(errno) {
                Some(name) => write!(f, ": {name}")?,
                None => write!(f, ": errno {errno}")?,
            }
            let text = std::io::Error::from_raw_os_error(errno).to_string();
            if let Some((text, _)) = text.split_once(" (os error") {
                write!(f, " ({text})")?;
            }
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "\n  try: {remedy}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The name of an error number, of those that the calls made here answer with.
#[must_use]
pub fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::EIO => "EIO",
        libc::ENXIO => "ENXIO",
        libc::E2BIG => "E2BIG",
        libc::EBADF => "EBADF",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EACCES => "EACCES",
        libc::EFAULT => "EFAULT",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::ENODEV => "ENODEV",
        libc::ENOTDIR => "ENOTDIR",
        libc::EISDIR => "EISDIR",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOTTY => "ENOTTY",
        libc::EFBIG => "EFBIG",
        libc::ENOSPC => "ENOSPC",
        libc::ESPIPE => "ESPIPE",
        libc::EROFS => "EROFS",
        libc::EPIPE => "EPIPE",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        libc::ECANCELED => "ECANCELED",
        libc::ESRCH => "ESRCH",
        libc::EUSERS => "EUSERS",
        _ => return None,
    })
}
