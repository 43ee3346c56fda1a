//! The kernel's news of devices (`kobject_uevent_env`), by a netlink socket.

use super::{Host, sysfs};
use crate::error::{Error, Result};
use crate::pci::Bdf;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use std::os::fd::{AsFd, BorrowedFd};

/// What happened, `kobject_actions` in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It appeared.
    Add,
    /// It is gone.
    Remove,
    /// Something about it changed.
    Change,
    /// It has another name or parent.
    Move,
    /// It is in use again.
    Online,
    /// It is about to be removed.
    Offline,
    /// A driver has it.
    Bind,
    /// Its driver has let it go.
    Unbind,
}

/// A piece of news.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// What happened.
    pub action: Action,
    /// To which device: its path below `/sys`.
    pub devpath: String,
    /// The device's bus or class.
    pub subsystem: Option<String>,
    /// Its address, if it is a PCI function.
    pub pci_slot: Option<Bdf>,
    /// Its driver.
    pub driver: Option<String>,
    /// The number of this piece of news; 0 when not said.
    pub number: u64,
}

/// What [`Uevents::next`] heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// News.
    Event(Uevent),
    /// The socket's buffer ran over and news was lost: look at all devices again.
    Overrun,
}

/// The group that the kernel sends to; udev's is 2.
const KERNEL: u32 = 1;
/// Above `UEVENT_BUFFER_SIZE` and the longest path together.
const LONGEST: usize = 8192;
/// Bytes of news that may wait, as far as `net.core.rmem_max` allows.
const BUFFER: libc::c_int = 1 << 20;

/// The number of the last piece of news there was; 0 when the kernel does not say.
#[must_use]
pub fn last(host: &Host) -> u64 {
    sysfs::number(host.sys.join("kernel/uevent_seqnum")).unwrap_or(0)
}

/// A listener.
#[derive(Debug)]
pub struct Uevents(Socket);

impl Uevents {
    /// Starts to listen. What happened before is not heard: look at the devices after this.
    ///
    /// # Errors
    /// EMFILE and the like.
    pub fn new() -> Result<Self> {
        let failed = |what: &'static str| move |e: std::io::Error| Error::os(what, &e);
        let mut socket =
            Socket::new(NETLINK_KOBJECT_UEVENT).map_err(failed("making a socket for uevents"))?;
        socket.set_non_blocking(true).map_err(failed("making the socket for uevents non-blocking"))?;
        socket.set_rx_buf_sz(BUFFER).map_err(failed("sizing the socket for uevents"))?;
        socket.bind(&SocketAddr::new(0, KERNEL)).map_err(failed("listening to the kernel's uevents"))?;
        Ok(Self(socket))
    }

    /// The next piece of news, `None` when there is none yet. Never blocks.
    ///
    /// # Errors
    /// The socket's, other than an overrun.
    pub fn next(&self) -> Result<Option<Heard>> {
        let mut buffer = [0; LONGEST];
        loop {
            match self.0.recv_from(&mut &mut buffer[..], 0) {
                // From the kernel, not from a program.
                Ok((length, sender)) if sender.port_number() == 0 => {
                    if let Some(event) = parse(&buffer[..length]) {
                        return Ok(Some(Heard::Event(event)));
                    }
                }
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS) => return Ok(Some(Heard::Overrun)),
                    _ => return Err(Error::os("hearing the kernel's uevents", &error)),
                },
            }
        }
    }
}

impl AsFd for Uevents {
    /// Readable when [`next`](Uevents::next) has something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Reads `ACTION@devpath\0KEY=VALUE\0…`; `None` when it is not that, or not text.
#[must_use]
pub fn parse(message: &[u8]) -> Option<Uevent> {
    let mut parts = std::str::from_utf8(message).ok()?.split('\0');
    let (action, devpath) = parts.next()?.split_once('@')?;
    let action = match action {
        "add" => Action::Add,
        "remove" => Action::Remove,
        "change" => Action::Change,
        "move" => Action::Move,
        "online" => Action::Online,
        "offline" => Action::Offline,
        "bind" => Action::Bind,
        "unbind" => Action::Unbind,
        _ => return None,
    };
    if !devpath.starts_with('/') {
        return None;
    }
    let devpath = devpath.to_string();
    let mut event = Uevent { action, devpath, subsystem: None, pci_slot: None, driver: None, number: 0 };
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key {
            "SUBSYSTEM" => event.subsystem = Some(value.to_string()),
            "PCI_SLOT_NAME" => event.pci_slot = value.parse().ok(),
            "DRIVER" => event.driver = Some(value.to_string()),
            "SEQNUM" => event.number = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIND: &[u8] = b"bind@/devices/pci0000:00/0000:00:01.0/0000:01:00.0\0ACTION=bind\0\
        DEVPATH=/devices/pci0000:00/0000:00:01.0/0000:01:00.0\0SUBSYSTEM=pci\0DRIVER=vfio-pci\0\
        PCI_CLASS=20000\0PCI_ID=8086:10C9\0PCI_SLOT_NAME=0000:01:00.0\0SEQNUM=1234\0";

    #[test]
    fn a_bind_is_read() {
        let expected = Uevent {
            action: Action::Bind,
            devpath: "/devices/pci0000:00/0000:00:01.0/0000:01:00.0".into(),
            subsystem: Some("pci".into()),
            pci_slot: "01:00.0".parse().ok(),
            driver: Some("vfio-pci".into()),
            number: 1234,
        };
        assert_eq!(parse(BIND), Some(expected));
    }

    #[test]
    fn every_action_and_what_may_be_missing() {
        for (word, action) in [
            ("add", Action::Add),
            ("remove", Action::Remove),
            ("change", Action::Change),
            ("move", Action::Move),
            ("online", Action::Online),
            ("offline", Action::Offline),
            ("bind", Action::Bind),
            ("unbind", Action::Unbind),
        ] {
            let event = parse(format!("{word}@/x").as_bytes()).expect(word);
            assert_eq!((event.action, event.devpath.as_str()), (action, "/x"));
            assert_eq!((event.subsystem, event.pci_slot, event.driver), (None, None, None));
        }
        assert_eq!(parse(b"add@/x\0PCI_SLOT_NAME=nonsense\0\0=\0x").expect("an event").pci_slot, None);
    }

    #[test]
    fn malformed_messages_are_ignored() {
        for bad in [
            &b""[..],
            b"\0",
            b"add",
            b"@",
            b"@/x",
            b"add@",
            b"add@x",
            b"ADD@/x",
            b"libudev\0\xfe\xed",
            b"add@/\xff\0",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
        // Cut or changed anywhere: never a panic.
        for at in 0..BIND.len() {
            let _cut = parse(&BIND[..at]);
            let mut changed = BIND.to_vec();
            changed[at] ^= 0x5a;
            let _changed = parse(&changed);
        }
    }

    /// Has the kernel tell of /dev/null, as root can (`uevent_store`).
    fn provoke() {
        crate::devices::sysfs::write("/sys/class/mem/null/uevent".as_ref(), "change").expect("as root");
    }

    #[test]
    #[ignore = "needs root and a kernel of its own; where they are, .ci/run runs the ignored ones"]
    fn the_kernel_is_heard() {
        let uevents = Uevents::new().expect("a listener");
        provoke();
        // Sent before the write returned, behind what else happened.
        let mine =
            |heard: &Heard| matches!(heard, Heard::Event(event) if event.devpath.ends_with("/mem/null"));
        let heard = std::iter::from_fn(|| uevents.next().expect("no error")).find(mine).expect("the news");
        let Heard::Event(event) = heard else { panic!("{heard:?}") };
        assert_eq!((event.action, event.subsystem.as_deref()), (Action::Change, Some("mem")));
    }

    #[test]
    #[ignore = "needs root and a kernel of its own; where they are, .ci/run runs the ignored ones"]
    fn an_overrun_is_told() {
        let uevents = Uevents::new().expect("a listener");
        uevents.0.set_rx_buf_sz::<libc::c_int>(0).expect("a small buffer");
        for _ in 0..100 {
            provoke();
        }
        let heard: Vec<_> = std::iter::from_fn(|| uevents.next().expect("no error")).collect();
        assert!(heard.contains(&Heard::Overrun) && heard.len() < 100, "{} heard", heard.len());
        provoke();
        assert!(matches!(uevents.next(), Ok(Some(Heard::Event(_)))), "and goes on");
    }
}
