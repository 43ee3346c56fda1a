//! Which accelerator: as `--accel` says, once, before anything is made.

use super::Accelerator;
use crate::cli::AccelArg;
use crate::error::{Error, Result};
use crate::sys::kvm::Kvm;

/// What was chosen.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why KVM was not taken, when `auto` wanted it.
    pub no_kvm: Option<Error>,
}

/// Chooses. `auto` takes KVM where `/dev/kvm` can be opened, and falls back on the software machine where it is not there
/// or not this user's (ENOENT, ENODEV, EACCES, EPERM), and for no other failure of KVM's.
///
/// # Errors
/// KVM's, when it was asked for, or fails in a way that is no absence.
pub fn choose(wish: AccelArg) -> Result<Choice> {
    if wish == AccelArg::Software {
        return Ok(Choice { accelerator: Accelerator::Software, no_kvm: None });
    }
    match Kvm::open() {
        Ok(_) => Ok(Choice { accelerator: Accelerator::Kvm, no_kvm: None }),
        Err(error) if wish == AccelArg::Auto && is_absence(&error) => {
            Ok(Choice { accelerator: Accelerator::Software, no_kvm: Some(error) })
        }
        Err(error) => Err(error.remedy_also("--accel software measures the path without KVM")),
    }
}

/// Whether KVM is not there, or not this user's: a machine without it, not one with a fault.
fn is_absence(error: &Error) -> bool {
    const ABSENT: [i32; 4] = [libc::ENOENT, libc::ENODEV, libc::EACCES, libc::EPERM];
    error.errno().is_some_and(|errno| ABSENT.contains(&errno))
}

impl Choice {
    /// What a user should know of it, under the result.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.no_kvm.as_ref().map(|error| format!("no KVM here: {}", error.in_a_line()))
    }

    /// Refuses what only KVM can do: each a flag that was given, and why it needs KVM.
    ///
    /// # Errors
    /// The first of them, with the remedy.
    pub fn refuse(&self, needs_kvm: &[(&str, bool, &str)]) -> Result<()> {
        if self.accelerator == Accelerator::Kvm {
            return Ok(());
        }
        let Some((flag, _, why)) = needs_kvm.iter().find(|(_, given, _)| *given) else { return Ok(()) };
        let error = Error::new(format!("{flag} needs KVM: the software machine {why}"));
        Err(match &self.no_kvm {
            Some(no_kvm) => error.remedy(format!("a host with KVM; here {}", no_kvm.reason())),
            None => error.remedy("--accel kvm"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(errno: i32) -> Error {
        Error::os("opening /dev/kvm", &std::io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn only_an_absent_kvm_is_no_kvm() {
        for errno in [libc::ENOENT, libc::ENODEV, libc::EACCES, libc::EPERM] {
            assert!(is_absence(&failed(errno)), "{errno}");
        }
        for errno in [libc::EBUSY, libc::ENXIO, libc::EMFILE, libc::ENOMEM, libc::EIO] {
            assert!(!is_absence(&failed(errno)), "{errno}");
        }
        assert!(!is_absence(&Error::new("KVM has API version 11")));
    }

    #[test]
    fn a_refusal_names_flag_reason_and_remedy() {
        let fell_back = Choice { accelerator: Accelerator::Software, no_kvm: Some(failed(libc::ENOENT)) };
        let asked = Choice { accelerator: Accelerator::Software, no_kvm: None };
        let kvm = Choice { accelerator: Accelerator::Kvm, no_kvm: None };
        let flags = [("--device", false, "x"), ("--kernel", true, "runs no guest instruction")];
        assert!(kvm.refuse(&flags).is_ok() && asked.refuse(&flags[..1]).is_ok());
        let text = asked.refuse(&flags).expect_err("refused").to_string();
        assert!(
            text.contains("--kernel needs KVM: the software machine runs no guest instruction")
                && text.contains("--accel kvm")
        );
        let text = fell_back.refuse(&flags).expect_err("refused").to_string();
        assert!(text.contains("ENOENT") && text.contains("/dev/kvm"), "{text}");
    }
}
