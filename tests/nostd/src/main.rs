//! A program of pollvisor-core alone: no std, no allocator, no C library. It binds an event to a GSI, makes a pass, and
//! exits with 0 if the interrupt arrived.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};
use core::cell::Cell;
use pollvisor_core::ids::{EventKey, Gsi, SourceId};
use pollvisor_core::inject::{Accepted, Inject, InjectError, LineSource};
use pollvisor_core::irqfd::{Assign, AssignError, Bindings, Host, Irqfds, Outcome, Slot};
use pollvisor_core::poll::{Observer, Poller};
use pollvisor_core::route::{Chip, Irqchip, Msi, RawRoute};
use pollvisor_core::source::{Drained, Fired, Source};

/// The eventfd, the poller's observer and the guest, all in one.
struct World {
    bindings: Bindings,
    hooked: Cell<Option<SourceId>>,
    signals: Cell<u64>,
    vector: Cell<u8>,
}

impl Host for World {
    fn bindings(&self) -> &Bindings {
        &self.bindings
    }
    fn hook(&self, id: SourceId, _: EventKey) -> Result<(), AssignError> {
        self.hooked.set(Some(id));
        Ok(())
    }
    fn take_pending(&self, _: SourceId, _: EventKey) -> u64 {
        0
    }
    fn unhook(&self, _: SourceId) {}
    fn release(&self, _: SourceId, _: EventKey) {}
    fn signal(&self, _: EventKey) {}
    fn wake_deferred(&self) {}
    fn wake_shutdown(&self) {}
    fn relax(&self) {}
}

impl Inject for World {
    fn msi(&self, msi: &Msi) -> Result<Accepted, InjectError> {
        self.vector.set(msi.vector());
        Ok(Accepted::default())
    }
    fn pin(&self, _: Chip, _: u32, _: bool, _: LineSource) -> Result<(), InjectError> {
        Err(InjectError::Blocked)
    }
}

impl Source for &World {
    fn next(&mut self) -> Option<Fired> {
        // Once, until it is armed again.
        let id = if self.signals.get() > 0 { self.hooked.take()? } else { return None };
        Some(Fired { id, token: 0, hang_up: false })
    }
    fn drain(&mut self, _: &Fired) -> Drained {
        Drained { signals: self.signals.take(), stamp: 0 }
    }
    fn rearm(&mut self, fired: &Fired) {
        self.hooked.set(Some(fired.id));
    }
    fn flush(&mut self) {}
}

impl Observer for &World {
    fn now(&mut self) -> u64 {
        0
    }
    fn delivered(&mut self, _: &Fired, _: u64, _: u64, _: Drained, _: Outcome) {}
    fn deferred(&mut self, _: &Fired, _: u64, _: bool) {}
    fn hung_up(&mut self, _: &Fired) {}
}

fn arrives() -> Option<bool> {
    let mut world = World {
        bindings: Bindings::new(),
        hooked: Cell::new(None),
        signals: Cell::new(0),
        vector: Cell::new(0),
    };
    let irqfds = Irqfds::new([(); 4].map(|()| Slot::new()), Irqchip::Split, true);
    irqfds.set_routes(&world, 0, &[RawRoute::msi(Gsi(30), Msi::fixed(0, 0x55))]).ok()?;
    irqfds.assign(&world, &world, Assign { key: EventKey(1), gsi: Gsi(30), resample: None, slot: None }).ok()?;
    world.signals = Cell::new(1);
    let mut poller = Poller::new(&irqfds)?;
    // One signal, one event, and it is the route's.
    let events = poller.pass(&mut { &world }, &world, &mut { &world });
    Some(events == 1 && world.vector.get() == 0x55)
}

// The stack is 16-byte aligned at entry; `begin` expects a return address on it.
global_asm!(".globl _start", "_start: call {begin}", "ud2", begin = sym begin);

extern "C" fn begin() -> ! {
    exit(if arrives() == Some(true) { 0 } else { 1 })
}

fn exit(code: i32) -> ! {
    // SAFETY: exit_group does not return.
    unsafe { asm!("syscall", in("rax") 231, in("rdi") code, options(noreturn, nostack)) }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(2)
}

/// Named by core's own unwinding tables; nothing unwinds here.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What compilers expect of any machine; there is no C library to bring it.
///
/// # Safety
/// C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _) };
    to
}

/// As [`memcpy`].
///
/// # Safety
/// C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's.
    unsafe { asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("eax") value) };
    to
}

/// As [`memcpy`].
///
/// # Safety
/// C's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, count: usize) -> i32 {
    for at in 0..count {
        // SAFETY: the caller's.
        let (one, other) = unsafe { (one.add(at).read_volatile(), other.add(at).read_volatile()) };
        if one != other {
            return i32::from(one) - i32::from(other);
        }
    }
    0
}
