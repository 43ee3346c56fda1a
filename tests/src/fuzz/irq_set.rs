//! `VFIO_DEVICE_SET_IRQS`: any headers, against the rules in unbounded numbers; and what is accepted carried out on the
//! vectors, whose triggers are counted.

use super::bytes::Bytes;
use pollvisor_core::Errno;
use pollvisor_core::line::{
    Described, Enabled, Header, IrqType, Kind, Request, SetIrqsError, Single, TypeEvent, Vectors,
    VectorsError, Which, validate,
};
use std::collections::BTreeMap;

/// Vectors that the table holds, fewer than a device may have.
const TABLE: usize = 32;

struct Device {
    described: Described,
    /// Vectors that the host has to give.
    available: u32,
    resizable: bool,
    vectors: Vectors<u32, TABLE>,
    /// The triggers that should be there.
    set: BTreeMap<u32, u32>,
    opened: u32,
    retired: u32,
}

/// Any requests, to any device.
///
/// # Panics
/// When the verdict or the triggers disagree with the reference.
pub fn irq_set(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let num_irqs = [
        u32::from(bytes.below(8)).min(1),
        bytes.near(&[3, 8, 34]).min(64),
        bytes.near(&[3, 32, 64, 2048]).min(2048),
        u32::from(bytes.below(8)).min(1),
        u32::from(bytes.below(8)).min(1),
    ];
    let mut device = Device {
        described: Described { num_irqs, irq_type: IrqType::None, single_set: [false; 2] },
        available: bytes.near(&[2, 8, 32]),
        resizable: bytes.bool(),
        vectors: Vectors::new(),
        set: BTreeMap::new(),
        opened: 0,
        retired: 0,
    };
    for _ in 0..64 {
        if bytes.is_empty() {
            break;
        }
        let header = header(&mut bytes, &device.described);
        // A device that claims as much as fits in its numbers; nobody could carry that out.
        let boasts = Described { num_irqs: [u32::MAX - u32::from(bytes.below(4)); 5], ..device.described };
        let _only_asked = judged(header, &boasts);
        match judged(header, &device.described) {
            Ok(request) => device.carry_out(request, header, &mut bytes),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        device.compare();
    }
}

fn judged(header: Header, device: &Described) -> Result<Request, SetIrqsError> {
    let verdict = validate(header, device);
    let number = verdict.map_err(|error| error.errno()).err();
    assert_eq!(number, errno(header, device), "{header:?} {device:?}: {verdict:?}");
    verdict
}

fn header(bytes: &mut Bytes<'_>, device: &Described) -> Header {
    let choice = bytes.u8();
    let index = match choice & 15 {
        15 => bytes.u32(),
        few => u32::from(few) % 6,
    };
    // Exactly one of each, mostly.
    let flags = match choice >> 4 {
        0 => bytes.u32(),
        1 => u32::from(bytes.u8()),
        shape => 1 << (shape % 3) | if shape & 12 == 12 { 8 << (shape & 1) } else { 32 },
    };
    let irqs = device.num_irqs.get(index as usize).copied().unwrap_or(1);
    let start = if bytes.below(4) == 0 { bytes.near(&[2, irqs, u32::MAX - 2]) } else { 0 };
    let count = if bytes.below(4) == 0 { bytes.near(&[2, irqs, u32::MAX - 2]) } else { irqs.min(2) };
    let size = match flags & 7 {
        2 => 1,
        4 => 4,
        _ => 0,
    };
    let full = 20u32.wrapping_add(count.wrapping_mul(size));
    let argsz = if bytes.below(8) == 0 { bytes.near(&[20, full]) } else { full };
    Header { argsz, flags, index, start, count }
}

/// The verdict: every rule by itself, in the kernel's order, in numbers that do not wrap.
fn errno(header: Header, device: &Described) -> Option<Errno> {
    let Header { argsz, flags, index, start, count } = header;
    let (argsz, start, count) = (u128::from(argsz), u128::from(start), u128::from(count));
    let irqs = device.num_irqs.get(index as usize).copied().map(u128::from);
    let (none, boolean, eventfd) = (flags & 7 == 1, flags & 7 == 2, flags & 7 == 4);
    let size = if eventfd { 4 } else { u128::from(boolean) };
    let (mask, unmask, trigger) = (flags >> 3 == 1, flags >> 3 == 2, flags >> 3 == 4);
    let wrong = argsz < 20
        || irqs.is_none()
        || start + count >= u128::from(u32::MAX)
        || flags >= 64
        || irqs.is_some_and(|irqs| start >= irqs || start + count > irqs)
        || !(none || boolean || eventfd)
        || argsz < 20 + count * size;
    if wrong {
        return Some(Errno::EINVAL);
    }
    if !(mask || unmask || trigger) || index > 0 && !trigger {
        return Some(Errno::ENOTTY);
    }
    let is = |kind| device.irq_type == IrqType::Is(kind);
    let (mine, nothing) = match index {
        0 => (is(Kind::Intx), device.irq_type == IrqType::None),
        1 => (is(Kind::Msi), device.irq_type == IrqType::None),
        2 => (is(Kind::Msix), device.irq_type == IrqType::None),
        _ => {
            let set = device.single_set[index as usize - 3];
            let fine = if none { set } else { count > 0 };
            return (!fine).then_some(Errno::EINVAL);
        }
    };
    let one_line = index > 0 || start == 0 && count == 1;
    if !trigger {
        return match (mine && one_line, mask && eventfd) {
            (false, _) => Some(Errno::EINVAL),
            (true, true) => Some(Errno::ENOTTY),
            (true, false) => None,
        };
    }
    let disables = mine && none && count == 0;
    let binds = eventfd && (mine || nothing && start + count > 0) && one_line;
    let fires = (none || boolean) && mine && one_line;
    (!(disables || binds || fires)).then_some(Errno::EINVAL)
}

impl Device {
    fn carry_out(&mut self, request: Request, header: Header, bytes: &mut Bytes<'_>) {
        let kind = [Kind::Intx, Kind::Msi, Kind::Msix].get(header.index as usize).copied();
        let single = [Single::Error, Single::Request].get((header.index as usize).wrapping_sub(3)).copied();
        let which = if header.flags & 2 == 0 { Which::All } else { Which::Flagged };
        match request {
            Request::Disable(of) => {
                assert_eq!((kind, header.count), (Some(of), 0));
                self.turn(TypeEvent::Disable(of));
                if of != Kind::Intx {
                    let retired = &mut self.retired;
                    self.vectors.disable(|_, _| *retired += 1).expect("set up as this kind");
                    self.set.clear();
                }
            }
            Request::MaskIntx(all) | Request::UnmaskIntx(all) => assert_eq!(all, which),
            Request::UnmaskIntxBy => assert_eq!(header.flags, 4 | 16),
            Request::Bind { kind: of, start, count, enable } => {
                assert_eq!((kind, start, count), (Some(of), header.start, header.count));
                assert_eq!(enable, (self.described.irq_type == IrqType::None).then_some(start + count));
                self.bind(of, start, count, enable, bytes);
            }
            Request::Fire { kind: of, start, count, which: all } => {
                assert_eq!((kind, start, count, all), (Some(of), header.start, header.count, which));
                let even = |n: u32| all == Which::All || n.is_multiple_of(2);
                let mut fired = Vec::new();
                let number = self.vectors.fire(start, count, even, |trigger| fired.push(*trigger));
                let there = self.set.range(start..start + count).filter(|(vector, _)| even(*vector - start));
                assert!(fired.iter().eq(there.map(|(_, trigger)| trigger)));
                assert_eq!(number as usize, fired.len());
            }
            Request::ClearSingle(of) => self.single(of, single, false),
            Request::BindSingle(of) => self.single(of, single, bytes.bool()),
            Request::FireSingle(of, all) => assert_eq!((Some(of), all), (single, which)),
        }
    }

    fn turn(&mut self, event: TypeEvent) {
        self.described.irq_type = self.described.irq_type.next(event).expect("validated");
    }

    fn single(&mut self, of: Single, expected: Option<Single>, set: bool) {
        assert_eq!(Some(of), expected);
        self.described.single_set[usize::from(of == Single::Request)] = set;
    }

    fn bind(&mut self, kind: Kind, start: u32, count: u32, enable: Option<u32>, bytes: &mut Bytes<'_>) {
        if kind == Kind::Intx {
            return if enable.is_some() {
                self.turn(TypeEvent::Enable(kind))
            };
        }
        if let Some(wanted) = enable {
            let got = self.vectors.enable(wanted, self.available, self.resizable);
            let want = match (wanted as usize > TABLE, self.available) {
                (true, _) => Err(VectorsError::TooMany),
                (_, 0) => Err(VectorsError::NoneAvailable),
                (_, some) if some < wanted => Ok(Enabled::Only(some)),
                _ => Ok(Enabled::Done),
            };
            assert_eq!(got, want);
            if got != Ok(Enabled::Done) {
                return;
            }
            self.turn(TypeEvent::Enable(kind));
        }
        let fds: Vec<i32> = (0..count.min(4096)).map(|_| i32::from(bytes.u8()) - 64).collect();
        let (mut want, enabled) = (Ok(()), self.vectors.enabled());
        let (mut high, mut next) = (enabled, self.opened);
        for (vector, fd) in (start..).zip(&fds) {
            let there = (vector < high || self.resizable) && (vector as usize) < TABLE;
            if there {
                self.set.remove(&vector);
            }
            let failure = match (*fd, there) {
                (..0, _) => continue,
                (_, false) => Errno::EINVAL,
                (100.., true) => Errno::EBADF,
                (_, true) => {
                    next += 1;
                    self.set.insert(vector, next);
                    high = high.max(vector + 1);
                    continue;
                }
            };
            self.set.retain(|set, _| !(start..=vector).contains(set));
            want = Err(VectorsError::Block { vector, errno: failure });
            break;
        }
        let (opened, retired) = (&mut self.opened, &mut self.retired);
        let open = |_, fd| {
            if fd >= 100 {
                return Err(Errno::EBADF);
            }
            *opened += 1;
            Ok(*opened)
        };
        assert_eq!(self.vectors.bind(start, &fds, open, |_, _| *retired += 1), want);
        assert_eq!(self.vectors.enabled(), high);
    }

    fn compare(&self) {
        for vector in (0..70).chain([u32::MAX]) {
            assert_eq!(self.vectors.trigger(vector), self.set.get(&vector), "vector {vector}");
        }
        // Every trigger is in the table or was released, once.
        assert_eq!(self.opened as usize, self.retired as usize + self.set.len());
    }
}
