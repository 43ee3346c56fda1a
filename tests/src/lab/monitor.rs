//! QEMU's monitor, to make the emulated machine do what only its outside can, and the kernel's log of what came of it.

use pollvisor::error::{Error, Result};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long QEMU may take to answer, and the kernel to react.
pub const PATIENCE: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(2);
/// Ends whatever QEMU has of an unfinished command.
const FLUSH: u8 = 0xff;

/// QMP over the serial port that `$MONITOR` names.
#[derive(Debug)]
pub struct Monitor {
    port: File,
    asked: u32,
}

impl Monitor {
    /// Opens it.
    ///
    /// # Errors
    /// When there is none.
    pub fn open() -> Result<Self> {
        let path = std::env::var("MONITOR").map_err(|_| Error::new("$MONITOR is not set"))?;
        let mut port = open(&path, true)?;
        // A second time it is refused, and no harm done.
        let mut greeting = vec![FLUSH];
        greeting.extend(b"{\"execute\":\"qmp_capabilities\"}\n");
        port.write_all(&greeting).map_err(|e| Error::os(path, &e))?;
        Ok(Self { port, asked: 0 })
    }

    /// The human monitor's answer to a command.
    ///
    /// # Errors
    /// When none comes.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        self.asked += 1;
        // What others asked may still be answered.
        let id = format!("{}-{}", std::process::id(), self.asked);
        let question = json!({
            "execute": "human-monitor-command", "id": id, "arguments": { "command-line": command },
        });
        let told = |e: std::io::Error| Error::os("QEMU's monitor", &e);
        self.port.write_all(format!("{question}\n").as_bytes()).map_err(told)?;
        let mut heard = Vec::new();
        until(&format!("QEMU's answer to `{command}`"), || {
            read(&mut self.port, &mut heard).map_err(told)?;
            let mut answers = heard.split(|byte| *byte == b'\n').filter_map(|line| {
                let answer: Value = serde_json::from_slice(line).ok()?;
                (answer["id"] == id.as_str()).then_some(answer)
            });
            match answers.next_back() {
                None => Ok(None),
                Some(answer) => match answer["return"].as_str() {
                    Some(text) => Ok(Some(text.trim().to_string())),
                    None => Err(Error::new(format!("`{command}`: QEMU says {answer}"))),
                },
            }
        })
    }

    /// Has a device of QEMU's report an error of PCIe's, by its name in `pcie_aer_inject_error`.
    ///
    /// # Errors
    /// When QEMU does not.
    pub fn inject(&mut self, device: &str, error: &str) -> Result<()> {
        let answer = self.ask(&format!("pcie_aer_inject_error {device} {error}"))?;
        if answer.starts_with("OK ") { Ok(()) } else { Err(Error::new(format!("{error}: {answer}"))) }
    }
}

/// What the kernel says from now on.
#[derive(Debug)]
pub struct KernelLog {
    file: File,
    heard: Vec<u8>,
}

impl KernelLog {
    /// Begins to listen.
    ///
    /// # Errors
    /// When this is not allowed.
    pub fn from_now() -> Result<Self> {
        let mut file = open("/dev/kmsg", false)?;
        let _record = file.seek(SeekFrom::End(0)).map_err(|e| Error::os("/dev/kmsg", &e))?;
        Ok(Self { file, heard: Vec::new() })
    }

    /// Waits for `text`, said before or after this is called.
    ///
    /// # Errors
    /// When it does not come, with what came instead.
    pub fn says(&mut self, text: &str) -> Result<()> {
        let waited = until(&format!("the kernel to say `{text}`"), || {
            read(&mut self.file, &mut self.heard).map_err(|e| Error::os("/dev/kmsg", &e))?;
            Ok(self.has(text).then_some(()))
        });
        waited.inspect_err(|_| print!("{}", String::from_utf8_lossy(&self.heard)))
    }

    /// Whether it said `text` up to the last [`KernelLog::says`].
    #[must_use]
    pub fn has(&self, text: &str) -> bool {
        String::from_utf8_lossy(&self.heard).contains(text)
    }
}

fn open(path: &str, write: bool) -> Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).write(write).custom_flags(flags).open(path).map_err(|e| Error::os(path, &e))
}

/// What is there now.
fn read(file: &mut File, into: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => into.extend(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // Of the kernel's log: older lines were overwritten.
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::BrokenPipe) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Looks until `there` finds something.
///
/// # Errors
/// Its own; when the time is over.
pub fn until<T>(what: &str, mut there: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = there()? {
            return Ok(found);
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::new(format!("waited {PATIENCE:?} for {what}")));
        }
        sleep(TURN);
    }
}
