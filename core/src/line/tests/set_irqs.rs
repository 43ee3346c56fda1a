use proptest::prelude::*;

use super::super::set_irqs::{HEADER_BYTES, flags::*};
use super::super::*;
use crate::Errno;

use SetIrqsError as X;

const MSI: IrqType = IrqType::Is(Kind::Msi);
const MSIX: IrqType = IrqType::Is(Kind::Msix);
const INTX: IrqType = IrqType::Is(Kind::Intx);

fn device(irq_type: IrqType) -> Described {
    Described { num_irqs: [1, 8, 64, 1, 1], irq_type, single_set: [false, true] }
}

/// A header whose `argsz` covers four bytes for each.
fn header(index: u32, flags: u32, start: u32, count: u32) -> Header {
    let argsz = HEADER_BYTES.saturating_add(count.saturating_mul(4));
    Header { argsz, flags, index, start, count }
}

fn check(irq_type: IrqType, index: u32, flags: u32, start: u32, count: u32) -> Result<Request, X> {
    validate(header(index, flags, start, count), &device(irq_type))
}

#[test]
fn every_refusal() {
    let none = IrqType::None;
    let t = ACTION_TRIGGER;
    let short = |argsz, flags| validate(Header { argsz, flags, index: 1, start: 0, count: 2 }, &device(none));
    assert_eq!(short(19, t | DATA_EVENTFD), Err(X::ShortHeader));
    assert_eq!(short(27, t | DATA_EVENTFD), Err(X::ShortData));
    assert_eq!(short(21, t | DATA_BOOL), Err(X::ShortData));
    let cases = [
        (none, 5, t | DATA_NONE, 0, 1, X::BadIndex),
        (none, 1, t | DATA_NONE, 1, u32::MAX - 1, X::Overflow),
        (none, 1, t | DATA_NONE, u32::MAX, 0, X::Overflow),
        (none, 1, t | DATA_NONE, 0, u32::MAX, X::Overflow),
        (none, 1, t | DATA_NONE | 1 << 6, 0, 1, X::BadFlags),
        (none, 1, t | DATA_EVENTFD, 8, 0, X::OutOfRange),
        (none, 1, t | DATA_EVENTFD, 4, 5, X::OutOfRange),
        (none, 1, t, 0, 1, X::DataType),
        (none, 1, t | DATA_NONE | DATA_BOOL, 0, 1, X::DataType),
        (none, 1, DATA_EVENTFD, 0, 1, X::NoSuchAction),
        (none, 1, t | ACTION_MASK | DATA_EVENTFD, 0, 1, X::NoSuchAction),
        (MSI, 1, ACTION_MASK | DATA_NONE, 0, 1, X::NoSuchAction),
        (MSIX, 2, ACTION_UNMASK | DATA_NONE, 0, 1, X::NoSuchAction),
        (none, 3, ACTION_MASK | DATA_NONE, 0, 1, X::NoSuchAction),
        (INTX, 0, ACTION_MASK | DATA_EVENTFD, 0, 1, X::NoSuchAction),
        (INTX, 1, t | DATA_EVENTFD, 0, 1, X::WrongType),
        (MSI, 2, t | DATA_EVENTFD, 0, 1, X::WrongType),
        (MSIX, 0, t | DATA_EVENTFD, 0, 1, X::WrongType),
        (none, 0, ACTION_MASK | DATA_NONE, 0, 1, X::WrongType),
        (none, 0, t | DATA_NONE, 0, 1, X::WrongType),
        (none, 1, t | DATA_NONE, 0, 0, X::WrongType),
        (none, 1, t | DATA_BOOL, 0, 1, X::WrongType),
        (none, 0, t | DATA_EVENTFD, 0, 0, X::NotOneLine),
        (INTX, 0, ACTION_UNMASK | DATA_NONE, 0, 0, X::NotOneLine),
        (none, 1, t | DATA_EVENTFD, 0, 0, X::NoVectors),
        (none, 3, t | DATA_NONE, 0, 1, X::NoTrigger),
        (none, 4, t | DATA_BOOL, 0, 0, X::NoTrigger),
        (none, 4, t | DATA_EVENTFD, 0, 0, X::NoTrigger),
    ];
    for (irq_type, index, flags, start, count, error) in cases {
        assert_eq!(
            check(irq_type, index, flags, start, count),
            Err(error),
            "{index} {flags:#x} {start}+{count}"
        );
        let errno = if error == X::NoSuchAction { Errno::ENOTTY } else { Errno::EINVAL };
        assert_eq!(error.errno(), errno);
    }
    // More than one line: only a device that claims to have two gets this far.
    let two = Described { num_irqs: [2, 0, 0, 0, 0], irq_type: INTX, single_set: [false; 2] };
    assert_eq!(validate(header(0, t | DATA_EVENTFD, 1, 1), &two), Err(X::NotOneLine));
    assert_eq!(validate(header(0, ACTION_MASK | DATA_NONE, 0, 2), &two), Err(X::NotOneLine));
}

#[test]
fn every_request() {
    let t = ACTION_TRIGGER;
    let none = IrqType::None;
    for (kind, state) in Kind::ALL.into_iter().zip([INTX, MSI, MSIX]) {
        let index = kind.index();
        assert_eq!(check(state, index, t | DATA_NONE, 0, 0), Ok(Request::Disable(kind)));
        let bind = |enable| Ok(Request::Bind { kind, start: 0, count: 1, enable });
        assert_eq!(check(none, index, t | DATA_EVENTFD, 0, 1), bind(Some(1)));
        assert_eq!(check(state, index, t | DATA_EVENTFD, 0, 1), bind(None));
        for (data, which) in [(DATA_NONE, Which::All), (DATA_BOOL, Which::Flagged)] {
            let fire = Request::Fire { kind, start: 0, count: 1, which };
            assert_eq!(check(state, index, t | data, 0, 1), Ok(fire));
        }
    }
    let later = Request::Bind { kind: Kind::Msix, start: 3, count: 2, enable: Some(5) };
    assert_eq!(check(none, 2, t | DATA_EVENTFD, 3, 2), Ok(later));
    let (mask, unmask) = (ACTION_MASK, ACTION_UNMASK);
    assert_eq!(check(INTX, 0, mask | DATA_NONE, 0, 1), Ok(Request::MaskIntx(Which::All)));
    assert_eq!(check(INTX, 0, mask | DATA_BOOL, 0, 1), Ok(Request::MaskIntx(Which::Flagged)));
    assert_eq!(check(INTX, 0, unmask | DATA_NONE, 0, 1), Ok(Request::UnmaskIntx(Which::All)));
    assert_eq!(check(INTX, 0, unmask | DATA_BOOL, 0, 1), Ok(Request::UnmaskIntx(Which::Flagged)));
    assert_eq!(check(INTX, 0, unmask | DATA_EVENTFD, 0, 1), Ok(Request::UnmaskIntxBy));
    assert_eq!(check(none, 3, t | DATA_EVENTFD, 0, 1), Ok(Request::BindSingle(Single::Error)));
    assert_eq!(check(none, 4, t | DATA_NONE, 0, 0), Ok(Request::ClearSingle(Single::Request)));
    assert_eq!(check(MSI, 4, t | DATA_NONE, 0, 1), Ok(Request::FireSingle(Single::Request, Which::All)));
    assert_eq!(check(MSI, 4, t | DATA_BOOL, 0, 1), Ok(Request::FireSingle(Single::Request, Which::Flagged)));
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0..70u32, any::<u32>(), (0..3u32).prop_map(|n| u32::MAX - n)]
}

fn irq_type() -> impl Strategy<Value = IrqType> {
    prop_oneof![Just(IrqType::None), Just(INTX), Just(MSI), Just(MSIX)]
}

proptest! {
    /// Race 31: what is accepted lies within the device and its data within `argsz`, in unbounded arithmetic.
    #[test]
    fn nothing_accepted_overflows(
        argsz in number(), flags in prop_oneof![0..64u32, any::<u32>()], index in 0..7u32,
        start in number(), count in number(), num in number(), irq_type in irq_type(),
        single_set: [bool; 2],
    ) {
        let device = Described { num_irqs: [num; 5], irq_type, single_set };
        let header = Header { argsz, flags, index, start, count };
        if let Ok(request) = validate(header, &device) {
            let size = match flags & 7 { DATA_NONE => 0, DATA_BOOL => 1, _ => 4 };
            let end = u64::from(start) + u64::from(count);
            prop_assert!(end <= u64::from(num) && start < num && index < 5);
            prop_assert!(u64::from(argsz) >= 20 + u64::from(count) * size);
            prop_assert!((flags & 7).is_power_of_two() && (flags >> 3).is_power_of_two() && flags < 64);
            if let Request::Bind { enable: Some(n), .. } = request {
                prop_assert_eq!((u64::from(n), irq_type), (end, IrqType::None));
            }
        }
    }
}
