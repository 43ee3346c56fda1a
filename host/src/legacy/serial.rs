//! The serial port: vm-superio's 16550 on the bus, its interrupt on the I/O APIC, its other end a terminal or a file.

use super::{SERIAL_GSI, SERIAL_PORT, edge};
use crate::bus::{Buses, Device};
use crate::error::{Error, Result};
use crate::interrupts::Interrupts;
use crate::legacy::Ending;
use crate::sys::fd::{Epoll, EpollEvent, EventFd};
use crate::sys::terminal::RawTerminal;
use pollvisor_core::inject::InjectError;
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart};

/// Where the port leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Console {
    /// Standard output, and input as it is typed.
    Tty,
    /// Nowhere.
    Off,
    /// A file; there is no input.
    File(PathBuf),
}

struct Pin(Arc<Interrupts>);

impl Trigger for Pin {
    type E = InjectError;
    fn trigger(&self) -> std::result::Result<(), InjectError> {
        edge(&self.0, SERIAL_GSI)
    }
}

/// Where the guest's bytes go. A write that a signal ends is not made again: a vCPU that is to stop would hang in it as
/// long as nobody reads.
struct Out(Option<File>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match &mut self.0 {
            None => Ok(bytes.len()),
            Some(file) => match file.write(bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => Err(ErrorKind::TimedOut.into()),
                result => result,
            },
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Port(Mutex<Uart<Pin, NoEvents, Out>>);

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Uart<Pin, NoEvents, Out>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Port {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(first), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *first = self.lock().read(offset);
        }
    }
    fn write(&self, offset: u64, data: &[u8]) {
        if let (Some(first), Ok(offset)) = (data.first(), u8::try_from(offset)) {
            // An interrupt that the guest has masked, or a byte that nobody takes: its own business.
            let _done = self.lock().write(offset, *first);
        }
    }
}

/// The port, and the thread that reads the terminal. Dropping it ends the thread and gives the terminal back.
#[derive(Debug)]
pub struct Serial {
    stop: Arc<EventFd>,
    input: Option<JoinHandle<()>>,
    _terminal: Option<RawTerminal>,
}

impl Serial {
    /// Puts a port on the bus. `ending` hears when the user leaves: Ctrl-A x.
    ///
    /// # Errors
    /// When the file or the terminal cannot be had.
    pub fn add(
        console: &Console,
        buses: &Buses,
        interrupts: &Arc<Interrupts>,
        ending: &Arc<Ending>,
    ) -> Result<Self> {
        let duplicate = |fd: std::os::fd::BorrowedFd<'_>| {
            let fd = fd.try_clone_to_owned().map_err(|e| Error::os("the serial port's descriptor", &e))?;
            Ok(File::from(fd))
        };
        let out = match console {
            Console::Off => None,
            Console::Tty => Some(duplicate(std::io::stdout().as_fd())?),
            Console::File(path) => Some(
                File::create(path).map_err(|e| Error::os(format!("--serial file={}", path.display()), &e))?,
            ),
        };
        let port = Arc::new(Port(Mutex::new(Uart::new(Pin(interrupts.clone()), Out(out)))));
        buses.add_ports(SERIAL_PORT, 8, port.clone())?;
        let stop = Arc::new(EventFd::new()?);
        let mut serial = Self { stop: stop.clone(), input: None, _terminal: None };
        if *console == Console::Tty {
            let keys = duplicate(std::io::stdin().as_fd())?;
            serial._terminal = RawTerminal::enter(keys.as_fd())?;
            let leave = serial._terminal.is_some().then(|| ending.clone());
            let thread = crate::pin::thread("serial input");
            let input = thread.spawn(move || read_keys(keys, &port, &stop, leave.as_deref()));
            serial.input = Some(input.map_err(|e| Error::os("starting the serial port's thread", &e))?);
        }
        Ok(serial)
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.stop.signal(1);
        if let Some(input) = self.input.take() {
            let _ended = input.join();
        }
    }
}

/// Ctrl-A: what comes next is for us.
const ESCAPE: u8 = 1;
/// How long to wait for a guest that does not take its input.
const FULL: Duration = Duration::from_millis(5);
const KEYS: u64 = 0;
const STOP: u64 = 1;

fn read_keys(mut keys: File, port: &Port, stop: &EventFd, leave: Option<&Ending>) {
    let Ok(epoll) = Epoll::new() else { return };
    // A file cannot be watched, and is always ready: it is not read.
    if epoll.add(stop.as_fd(), STOP).is_err() || epoll.add(keys.as_fd(), KEYS).is_err() {
        return;
    }
    let mut events = [EpollEvent { events: 0, u64: 0 }; 2];
    let (mut buffer, mut escaped) = ([0; 64], false);
    loop {
        let count = epoll.wait(&mut events, -1);
        if events[..count].iter().any(|event| event.u64 == STOP) {
            return;
        }
        if count == 0 {
            continue;
        }
        let Ok(read @ 1..) = keys.read(&mut buffer) else { return };
        let mut typed = Vec::with_capacity(read);
        for key in &buffer[..read] {
            match (leave, std::mem::take(&mut escaped), *key) {
                (Some(_), false, ESCAPE) => escaped = true,
                (Some(ending), true, b'x') => ending.stop(libc::SIGINT),
                _ => typed.push(*key),
            }
        }
        let mut rest = &typed[..];
        while !rest.is_empty() {
            match port.lock().enqueue_raw_bytes(rest) {
                Ok(taken @ 1..) => rest = &rest[taken..],
                _ if stop.take() > 0 => return,
                _ => std::thread::sleep(FULL),
            }
        }
    }
}
