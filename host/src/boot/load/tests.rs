use super::super::memory::allocate;
use super::*;
use crate::cli::MemoryArg;
use std::fs;
use tempfile::TempDir;
use vm_memory::GuestAddress;

const PAYLOAD: &[u8] = &[0x5a; 512];

fn put_at(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// One sector of setup, and a payload for 1 MiB.
fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 1024];
    file.extend_from_slice(PAYLOAD);
    put_at(&mut file, 0x1f1, &[1]);
    put_at(&mut file, 0x1f4, &(512u32 / 16).to_le_bytes());
    put_at(&mut file, 0x202, b"HdrS");
    put_at(&mut file, 0x206, &0x20fu16.to_le_bytes());
    put_at(&mut file, 0x211, &[1]);
    put_at(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put_at(&mut file, 0x236, &1u16.to_le_bytes());
    put_at(&mut file, 0x238, &64u32.to_le_bytes());
    put_at(&mut file, 0x258, &HIGH.to_le_bytes());
    put_at(&mut file, 0x260, &0x10_0000u32.to_le_bytes());
    file
}

/// A segment for 1 MiB, and a PVH note that enters there.
fn elf() -> Vec<u8> {
    let mut file = vec![0; 256];
    put_at(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put_at(&mut file, 18, &62u16.to_le_bytes());
    put_at(&mut file, 24, &HIGH.to_le_bytes());
    put_at(&mut file, 32, &64u64.to_le_bytes());
    put_at(&mut file, 54, &56u16.to_le_bytes());
    put_at(&mut file, 56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
        put_at(&mut file, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, size), (40, size)] {
            put_at(&mut file, at + field, &value.to_le_bytes());
        }
    };
    header(64, 1, 256, HIGH, 512);
    header(120, 4, 192, 0, 20);
    for (at, number) in [(192, 4u32), (196, 4), (200, 18)] {
        put_at(&mut file, at, &number.to_le_bytes());
    }
    put_at(&mut file, 204, b"Xen\0");
    put_at(&mut file, 208, &0x10_0000u32.to_le_bytes());
    file.extend_from_slice(PAYLOAD);
    file
}

struct Case {
    memory: GuestMemoryMmap,
    folder: TempDir,
}

impl Case {
    fn new() -> Self {
        Self {
            memory: allocate(&MemoryArg::of(64 << 20)).expect("64 MiB"),
            folder: TempDir::new().expect("a folder"),
        }
    }

    fn load(&self, kernel: &[u8], initramfs: Option<&[u8]>, cmdline: &str) -> Result<Entry> {
        let (kernel_path, initramfs_path) = (self.folder.path().join("k"), self.folder.path().join("i"));
        fs::write(&kernel_path, kernel).expect("writable");
        if let Some(initramfs) = initramfs {
            fs::write(&initramfs_path, initramfs).expect("writable");
        }
        let boot = Boot {
            kernel: kernel_path,
            initramfs: initramfs.map(|_| initramfs_path),
            cmdline: cmdline.into(),
        };
        load(&self.memory, &boot, ACPI.start)
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("memory");
        bytes
    }
}

#[test]
fn a_bzimage_is_where_its_zero_page_says() {
    let case = Case::new();
    let entry = case.load(&bzimage(), Some(&[7; 5000]), "quiet").expect("valid");
    assert_eq!(entry, Entry::Long(HIGH + 0x200));
    assert_eq!(case.read::<512>(HIGH), PAYLOAD);
    assert_eq!(case.read::<6>(COMMAND_LINE), *b"quiet\0");
    let at = u32::from_le_bytes(case.read(ZERO_PAGE + 0x218));
    assert_eq!(u64::from(at), (64 << 20) - 0x2000, "as high as it goes, page by page");
    assert_eq!(u32::from_le_bytes(case.read(ZERO_PAGE + 0x21c)), 5000);
    assert_eq!(case.read::<1>(u64::from(at) + 4999), [7]);
    assert_eq!(u64::from_le_bytes(case.read(ZERO_PAGE + 0x70)), ACPI.start);
    assert_eq!(case.read::<1>(ZERO_PAGE + 0x1e8), [4], "e820 entries");
}

#[test]
fn an_elf_file_enters_by_its_note() {
    let case = Case::new();
    assert_eq!(case.load(&elf(), Some(&[7; 10]), ""), Ok(Entry::Pvh(HIGH)));
    assert_eq!(case.read::<512>(HIGH), PAYLOAD);
    assert_eq!(u32::from_le_bytes(case.read(START_INFO)), 0x336e_c578);
    assert_eq!(u64::from_le_bytes(case.read(MODULES + 8)), 10);
    assert_eq!(u64::from_le_bytes(case.read(START_INFO + 32)), ACPI.start);
}

#[test]
fn what_does_not_fit_is_said() {
    let case = Case::new();
    let told = |kernel: &[u8], initramfs: Option<&[u8]>, cmdline: &str| {
        case.load(kernel, initramfs, cmdline).expect_err("refused").to_string()
    };
    assert!(told(b"", None, "").contains("cut off"));
    assert!(told(&[0; 4096], None, "").contains("neither"));
    assert!(told(&bzimage()[..1400], None, "").contains("cut off"));
    assert!(told(&elf()[..600], None, "").contains("cut off"));
    assert!(told(&bzimage(), None, &"x".repeat(65)).contains("64"));
    assert!(told(&bzimage(), Some(&[]), "").contains("initramfs"));
    assert!(told(&bzimage(), Some(&vec![0; 64 << 20]), "").contains("room"));
    let mut huge = bzimage();
    put_at(&mut huge, 0x260, &0x7fff_0000u32.to_le_bytes());
    assert!(told(&huge, None, "").contains("memory"));
    let mut low = elf();
    put_at(&mut low, 64 + 24, &0x1000u64.to_le_bytes());
    assert!(told(&low, None, "").contains("segment 0"));
    let mut no_note = elf();
    put_at(&mut no_note, 200, &17u32.to_le_bytes());
    assert!(told(&no_note, None, "").contains("PVH"));
}

/// Whatever is in the file: an error or a kernel, and nothing where the tables are.
#[test]
fn broken_files_do_no_harm() {
    let case = Case::new();
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let interesting =
        [0u64, 1, 0x7f, 0x80, 0xff, 0xfff, 0x7fff_ffff, 0x8000_0000, u64::MAX >> 1, u64::MAX - 7, u64::MAX];
    for round in 0..4000 {
        let mut file = if round % 2 == 0 { bzimage() } else { elf() };
        for _ in 0..=random() % 3 {
            let from = if round % 2 == 0 { 0x1f1 } else { 0 };
            let at = from + usize::try_from(random() % 200).expect("small");
            let value = interesting[usize::try_from(random() % 11).expect("small")].to_le_bytes();
            let size = 1 << (random() % 4);
            put_at(&mut file, at, &value[..size]);
        }
        if random() % 4 == 0 {
            file.truncate(usize::try_from(random() % 1600).expect("small"));
        }
        if let Ok(Entry::Long(at) | Entry::Pvh(at)) = case.load(&file, None, "quiet") {
            assert!((HIGH..64 << 20).contains(&at), "{at:#x}");
        }
        assert_eq!(case.read::<64>(LOW_END - 64), [0; 64]);
        assert_eq!(case.read::<64>(ACPI.start), [0; 64]);
    }
}
