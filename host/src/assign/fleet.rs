//! The devices of a VM, and the thread that hears when one has to go: the host wants it back, it failed, or a sibling in
//! its IOMMU group got a host driver.
//!
//! ```text
//!  sysfs unbind ─► VFIO: request eventfd ─┐
//!  AER ─► VFIO: error eventfd ────────────┼─► watch ─► release: disable, deafen, unroute, unmap, close ─► the kernel goes on
//!  uevents ─► core::group's notifier ─────┤
//!  uevents ─► VFIO's own device is gone ──┘
//! ```
//! The last is how a driver without a request eventfd is heard, as those of mediated devices are: VFIO takes its own device
//! out of sysfs first (`vfio_unregister_group_dev`), and then waits until this one is closed.

use super::{AssignConfig, Assigned, Opener, Opening};
use crate::devices::{Action, DeviceAddress, Heard, Host, Uevent, Uevents, is_registered, last_uevent};
use crate::error::{Error, Result};
use crate::platform::Parts;
use crate::sys::fd::{Epoll, EpollEvent, EventFd};
use pollvisor_core::group::{BusEvent, Notice};
use pollvisor_core::line::Single;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vm_memory::GuestMemoryMmap;

/// Why a device went by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The host wanted it back.
    WantedBack(String),
    /// It, or a port above it, reported an error that PCIe does not correct. VFIO does not tell fatal ones from others.
    Failed(String),
    /// A device of its IOMMU group got a driver of the host's: they share a DMA domain.
    Unsafe {
        /// The device.
        name: String,
        /// The other one.
        sibling: String,
    },
}

impl std::fmt::Display for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::WantedBack(name) => {
                write!(f, "{name}: the host wants it back; it was taken from the guest")
            }
            Self::Failed(name) => write!(
                f,
                "{name}: an uncorrectable PCIe error, see the kernel's log; it was taken from the guest"
            ),
            Self::Unsafe { name, sibling } => write!(
                f,
                "{name}: {sibling} of its IOMMU group got a driver of the host's; it was taken from the guest"
            ),
        }
    }
}

#[derive(Debug)]
struct Entry {
    number: u64,
    address: DeviceAddress,
    device: Arc<Assigned>,
    opening: Opening,
    /// As [`SINGLES`], then the ends of its interrupts, if they are heard here.
    events: Vec<Arc<EventFd>>,
    /// Of one that cannot tell that it is wanted back, but whose VFIO device sysfs shows: the last uevent before it was opened.
    silent_since: Option<u64>,
}

#[derive(Debug, Default)]
struct Entries {
    /// The number of the last device that came.
    last: u64,
    there: Vec<Entry>,
    /// Those that are being closed: the kernel has them as open still.
    going: Vec<DeviceAddress>,
}

/// The singles, in the order of [`Entry::events`].
const SINGLES: [Single; 2] = [Single::Request, Single::Error];
const FAILED: u64 = 1;
const ENDED: u64 = 2;
/// Tokens of one device.
const TOKENS: u64 = 3;
const STOP: u64 = u64::MAX;
const UEVENTS: u64 = u64::MAX - 1;

/// What the fleet's thread and its owner share.
#[derive(Debug)]
pub struct Inner {
    parts: Arc<Parts>,
    host: Host,
    opener: Opener,
    entries: Mutex<Entries>,
    news: Mutex<Vec<News>>,
    epoll: Epoll,
    stop: EventFd,
    stopping: AtomicBool,
    uevents: Uevents,
}

/// See the module's text. Dropping it takes all devices from the guest and closes them.
#[derive(Debug)]
pub struct Fleet {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// An empty fleet of a VM with this memory.
    ///
    /// # Errors
    /// When descriptors or threads run out.
    pub fn start(host: Host, parts: &Arc<Parts>, memory: Arc<GuestMemoryMmap>) -> Result<Self> {
        let (epoll, stop, uevents) = (Epoll::new()?, EventFd::new()?, Uevents::new()?);
        epoll.add(stop.as_fd(), STOP)?;
        epoll.add(uevents.as_fd(), UEVENTS)?;
        let inner = Arc::new(Inner {
            opener: Opener::new(host.clone(), parts.vm.clone(), memory),
            host,
            parts: parts.clone(),
            entries: Mutex::default(),
            news: Mutex::default(),
            epoll,
            stop,
            stopping: AtomicBool::new(false),
            uevents,
        });
        let its = inner.clone();
        let thread = crate::pin::thread("pv-devices").spawn(move || its.watch());
        let thread = thread.map_err(|e| Error::os("starting pv-devices", &e))?;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// Opens a device and puts it on the guest's bus. Waits for one that is being closed.
    ///
    /// # Errors
    /// What is in the way, and what to do; nothing is left open.
    pub fn attach(
        &self,
        address: DeviceAddress,
        iommufd: Option<bool>,
        config: &AssignConfig,
    ) -> Result<Arc<Assigned>> {
        let inner = &self.inner;
        while inner.entries().going.contains(&address) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let last = last_uevent(&inner.host);
        let (file, opening) = inner.opener.open(address, iommufd)?;
        let device = match Assigned::new(file, config, &inner.parts, &inner.host) {
            Ok(device) => device,
            Err((error, closed)) => {
                let _gone = inner.opener.close(opening, closed);
                return Err(error);
            }
        };
        let mut entries = inner.entries();
        entries.last += 1;
        let number = entries.last;
        let (events, tells) = match inner.listen(&device, number) {
            Ok(heard) => heard,
            Err(error) => {
                drop(entries);
                let _first_mistake_counts = inner.close(&device, opening);
                return Err(error);
            }
        };
        let silent_since = (!tells && is_registered(&inner.host, address)).then_some(last);
        entries.there.push(Entry { number, address, device: device.clone(), opening, events, silent_since });
        Ok(device)
    }

    /// Takes a device from the guest and closes it. False: it had gone by itself.
    ///
    /// # Errors
    /// What did not go as it should; it is closed all the same.
    pub fn detach(&self, device: &Arc<Assigned>) -> Result<bool> {
        self.inner.detach(|entry| Arc::ptr_eq(&entry.device, device), None).unwrap_or(Ok(false))
    }

    /// The devices that are there now.
    #[must_use]
    pub fn devices(&self) -> Vec<Arc<Assigned>> {
        self.inner.entries().there.iter().map(|entry| entry.device.clone()).collect()
    }

    /// What went by itself since it was last asked.
    #[must_use]
    pub fn news(&self) -> Vec<News> {
        std::mem::take(&mut *self.inner.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether what is counted of groups and containers agrees with what is open.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.inner.opener.is_consistent()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.stop.signal(1);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
        while let Some(result) = self.inner.detach(|_| true, None) {
            if let Err(error) = result {
                eprintln!("pollvisor: {error}");
            }
        }
    }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// And whether it can tell that it is wanted back.
    fn listen(&self, device: &Assigned, number: u64) -> Result<(Vec<Arc<EventFd>>, bool)> {
        let (mut events, mut tells) = (Vec::new(), [false; SINGLES.len()]);
        for (single, it_can) in SINGLES.into_iter().zip(&mut tells) {
            let event = Arc::new(EventFd::new()?);
            *it_can = device.listen(single, &event)?;
            events.push(event);
        }
        events.extend(device.ends()?);
        for (event, place) in events.iter().zip(0..) {
            self.epoll.add(event.as_fd(), number * TOKENS + place)?;
        }
        Ok((events, tells[0]))
    }

    /// Takes the first device that `which` picks; None: there was none. Whoever finds it gone finds the news of it.
    fn detach(&self, which: impl Fn(&Entry) -> bool, news: Option<News>) -> Option<Result<bool>> {
        let mut entries = self.entries();
        let at = entries.there.iter().position(which)?;
        let Entry { address, device, opening, events, .. } = entries.there.remove(at);
        entries.going.push(address);
        drop(entries);
        self.news.lock().unwrap_or_else(PoisonError::into_inner).extend(news);
        for event in &events {
            self.epoll.remove(event.as_fd());
        }
        let closed = self.close(&device, opening);
        self.entries().going.retain(|other| *other != address);
        Some(closed.map(|()| true))
    }

    fn close(&self, device: &Assigned, opening: Opening) -> Result<()> {
        // Only entries are released, and an entry is taken once.
        let Some((closed, result)) = device.release() else { return Ok(()) };
        let _gone = self.opener.close(opening, closed);
        result
    }

    fn watch(&self) {
        let mut events = [EpollEvent { events: 0, u64: 0 }; 16];
        while !self.stopping.load(Ordering::Acquire) {
            let count = self.epoll.wait(&mut events, -1);
            for event in &events[..count] {
                match event.u64 {
                    STOP => {}
                    UEVENTS => self.hear(),
                    token => self.called(token),
                }
            }
        }
    }

    /// A device's own event.
    fn called(&self, token: u64) {
        let (number, place) = (token / TOKENS, token % TOKENS);
        let device = {
            let entries = self.entries();
            let Some(entry) = entries.there.iter().find(|entry| entry.number == number) else { return };
            let event = usize::try_from(place).ok().and_then(|place| entry.events.get(place));
            if event.is_none_or(|event| event.take() == 0) {
                return;
            }
            entry.device.clone()
        };
        let name = device.name().to_string();
        let news = match place {
            ENDED => return device.unmask(),
            FAILED => News::Failed(name),
            _ => News::WantedBack(name),
        };
        drop(device);
        self.let_go(news, |entry| entry.number == number);
    }

    /// VFIO's own device of one that cannot tell is gone: `…/NAME/vfio-dev/vfioN`.
    fn unregistered(&self, event: &Uevent) {
        let name = event.devpath.rsplit('/').nth(2).unwrap_or_default();
        let wanted = |entry: &Entry| {
            entry.address.to_string() == name && entry.silent_since.is_some_and(|since| event.number > since)
        };
        let found = self
            .entries()
            .there
            .iter()
            .find(|entry| wanted(entry))
            .map(|entry| entry.device.name().to_string());
        if let Some(name) = found {
            self.let_go(News::WantedBack(name), wanted);
        }
    }

    /// As [`unregistered`](Self::unregistered), when the news of it may be lost.
    fn look_for_unregistered(&self) {
        let gone = |entry: &&Entry| entry.silent_since.is_some() && !is_registered(&self.host, entry.address);
        let lost: Vec<_> = {
            let entries = self.entries();
            let gone = entries.there.iter().filter(gone);
            gone.map(|entry| (entry.number, entry.device.name().to_string())).collect()
        };
        for (number, name) in lost {
            self.let_go(News::WantedBack(name), |entry| entry.number == number);
        }
    }

    fn let_go(&self, news: News, which: impl Fn(&Entry) -> bool) {
        let text = news.to_string();
        let Some(result) = self.detach(which, Some(news)) else { return };
        eprintln!("pollvisor: {text}");
        if let Err(error) = result {
            eprintln!("pollvisor: {error}");
        }
    }

    fn hear(&self) {
        // As many as there are now; the rest wakes again.
        for _ in 0..64 {
            match self.uevents.next() {
                Ok(Some(Heard::Event(event))) => self.told(&event),
                Ok(Some(Heard::Overrun)) => {
                    for (group, sibling, notice) in self.opener.look_again() {
                        self.take_notice(group, &sibling, notice);
                    }
                    self.look_for_unregistered();
                }
                Ok(None) => return,
                Err(error) => {
                    eprintln!("pollvisor: {error}");
                    return;
                }
            }
        }
    }

    fn told(&self, event: &Uevent) {
        match (event.subsystem.as_deref(), event.action) {
            (Some("pci" | "mdev"), _) => {}
            (Some("vfio-dev"), Action::Remove) => return self.unregistered(event),
            _ => return,
        }
        let Some((_, name)) = event.devpath.rsplit_once('/') else { return };
        let change = match event.action {
            Action::Add => BusEvent::Add,
            Action::Remove => BusEvent::Del,
            Action::Unbind => BusEvent::Unbound,
            Action::Bind => {
                let groups: Vec<_> = self.entries().there.iter().map(|entry| entry.opening.group()).collect();
                let holder = groups.into_iter().find_map(|group| self.opener.holder(group, name));
                let Some(holder) = holder else { return };
                BusEvent::Bound(holder)
            }
            _ => return,
        };
        if let Some((group, notice)) = self.opener.notify(name, change) {
            self.take_notice(group, name, notice);
        }
    }

    fn take_notice(&self, group: u32, sibling: &str, notice: Notice) {
        match notice {
            Notice::Fine | Notice::AlreadyKnown => {}
            Notice::AddedWhileLive => {
                eprintln!(
                    "pollvisor: {sibling} appeared in IOMMU group {group}, which is in use; leave it without a driver"
                );
            }
            Notice::Fatal => loop {
                let name = {
                    let entries = self.entries();
                    let entry = entries.there.iter().find(|entry| entry.opening.group() == group);
                    match entry {
                        Some(entry) => entry.device.name().to_string(),
                        None => return,
                    }
                };
                let news = News::Unsafe { name, sibling: sibling.to_string() };
                self.let_go(news, |entry| entry.opening.group() == group);
            },
        }
    }
}
