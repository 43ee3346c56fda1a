//! An NVMe controller (NVM Express base specification 2.0, chapters 3 and 5): an interrupt is the completion of a
//! command. Vector 0 is the admin queue's; with MSI-X every I/O queue has one more.

use super::{Access, Device, Kind, checked, get, set, wait};
use pollvisor::error::{Error, Result};
use std::time::Duration;

const CAP: u64 = 0;
/// Masks the pin's vectors, and unmasks them.
const INTMS: u64 = 0xc;
const INTMC: u64 = 0x10;
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// Entries of 64 and 16 bytes in the I/O queues, pages of 4096 bytes, the NVM command set, enabled.
const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;
const READY: u32 = 1;
const FATAL: u32 = 2;

const CREATE_SQ: u8 = 0x01;
const CREATE_CQ: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const FLUSH: u8 = 0x00;
const NUMBER_OF_QUEUES: u32 = 7;

const PAGE: u64 = 4096;
/// Entries of every queue: a page of commands.
const DEPTH: u16 = 64;
/// I/O queues, so vectors beside the first.
const QUEUES: u16 = 15;

/// A pair of queues, as both sides go round them.
#[derive(Debug, Clone, Copy, Default)]
struct Queue {
    tail: u16,
    head: u16,
    /// How often completions went round: an even number leaves new ones with phase 1.
    rounds: u16,
    outstanding: u16,
}

/// A command, as far as one is needed here.
#[derive(Debug, Clone, Copy, Default)]
struct Command {
    opcode: u8,
    namespace: u32,
    address: u64,
    dword10: u32,
    dword11: u32,
}

/// The controller.
#[derive(Debug, Default)]
pub struct Nvme {
    memory: u64,
    /// Bytes between doorbells.
    stride: u64,
    queues: Vec<Queue>,
}

impl Nvme {
    /// One that is not set up.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The Identify Controller data (4096 bytes), which the device writes to memory. Vector 0 is raised by it.
    ///
    /// # Errors
    /// When the command fails or does not end.
    pub fn identify(&mut self, io: &mut dyn Access) -> Result<Vec<u8>> {
        let at = self.page(2 * (QUEUES + 1));
        let mut data = vec![0xa5; 4096];
        io.write_memory(at, &data);
        self.admin(io, Command { opcode: IDENTIFY, address: at, dword10: 1, ..Command::default() })?;
        io.read_memory(at, &mut data);
        Ok(data)
    }

    /// Of the memory given: two pages per queue, commands and completions, and one for data.
    fn page(&self, number: u16) -> u64 {
        self.memory + PAGE * u64::from(number)
    }

    fn doorbell(&self, queue: u16, completions: bool) -> u64 {
        DOORBELLS + (2 * u64::from(queue) + u64::from(completions)) * self.stride
    }

    /// Puts `times` commands into a queue and rings once.
    fn submit(&mut self, io: &mut dyn Access, queue: u16, command: Command, times: u16) -> Result<()> {
        checked("nvme", queue, u16::try_from(self.queues.len()).unwrap_or(u16::MAX))?;
        let (page, doorbell) = (self.page(2 * queue), self.doorbell(queue, false));
        let state = &mut self.queues[usize::from(queue)];
        if times >= DEPTH - state.outstanding {
            return Err(Error::new(format!(
                "nvme queue {queue}: {times} commands more than the {} of {} in it",
                state.outstanding,
                DEPTH - 1
            ))
            .remedy("acknowledge in between"));
        }
        for _ in 0..times {
            let mut entry = [0; 64];
            entry[0] = command.opcode;
            entry[2..4].copy_from_slice(&state.tail.to_le_bytes());
            entry[4..8].copy_from_slice(&command.namespace.to_le_bytes());
            entry[24..32].copy_from_slice(&command.address.to_le_bytes());
            entry[40..44].copy_from_slice(&command.dword10.to_le_bytes());
            entry[44..48].copy_from_slice(&command.dword11.to_le_bytes());
            io.write_memory(page + 64 * u64::from(state.tail), &entry);
            state.tail = (state.tail + 1) % DEPTH;
        }
        state.outstanding += times;
        let tail = u32::from(state.tail);
        set(io, doorbell, tail);
        Ok(())
    }

    /// Takes the completions that are there; how many.
    fn reap(&mut self, io: &mut dyn Access, queue: u16) -> Result<u16> {
        let (page, doorbell) = (self.page(2 * queue + 1), self.doorbell(queue, true));
        let state = &mut self.queues[usize::from(queue)];
        let (mut reaped, mut failed) = (0, None);
        while state.outstanding > 0 {
            let mut status = [0; 2];
            io.read_memory(page + 16 * u64::from(state.head) + 14, &mut status);
            let status = u16::from_le_bytes(status);
            if status & 1 == state.rounds & 1 {
                break;
            }
            failed = failed.or(Some(status >> 1).filter(|status| *status != 0));
            state.outstanding -= 1;
            state.head = (state.head + 1) % DEPTH;
            state.rounds = state.rounds.wrapping_add(u16::from(state.head == 0));
            reaped += 1;
        }
        let head = u32::from(state.head);
        if reaped > 0 {
            set(io, doorbell, head);
        }
        match failed {
            Some(status) => {
                Err(Error::new(format!("a command of nvme queue {queue} failed with status {status:#x}")))
            }
            None => Ok(reaped),
        }
    }

    /// An admin command, and its completion waited for.
    fn admin(&mut self, io: &mut dyn Access, command: Command) -> Result<()> {
        self.submit(io, 0, command, 1)?;
        let mut result = Ok(0);
        wait(&format!("nvme's admin command {:#x}", command.opcode), Duration::from_micros(200), || {
            result = self.reap(io, 0);
            result != Ok(0)
        })?;
        result.map(|_| ())
    }

    fn create_queues(&mut self, io: &mut dyn Access) -> Result<()> {
        let counts = u32::from(QUEUES - 1) << 16 | u32::from(QUEUES - 1);
        let features = Command {
            opcode: SET_FEATURES,
            dword10: NUMBER_OF_QUEUES,
            dword11: counts,
            ..Command::default()
        };
        self.admin(io, features)?;
        for queue in 1..=QUEUES {
            let dword10 = u32::from(DEPTH - 1) << 16 | u32::from(queue);
            let vector = u32::from(queue) << 16;
            // In one piece; completions with interrupts, commands for the completion queue of the same number.
            let completions = Command {
                opcode: CREATE_CQ,
                address: self.page(2 * queue + 1),
                dword10,
                dword11: vector | 3,
                ..Command::default()
            };
            let commands = Command {
                opcode: CREATE_SQ,
                address: self.page(2 * queue),
                dword10,
                dword11: u32::from(queue) << 16 | 1,
                ..Command::default()
            };
            self.admin(io, completions)?;
            self.admin(io, commands)?;
            self.queues.push(Queue::default());
        }
        Ok(())
    }
}

impl Device for Nvme {
    fn name(&self) -> &'static str {
        "nvme"
    }

    fn vectors(&self, kind: Kind) -> u16 {
        match kind {
            Kind::Msix => 1 + QUEUES,
            Kind::Msi => 0,
            Kind::Intx => 1,
        }
    }

    fn counts_exactly(&self) -> bool {
        true
    }

    fn memory(&self) -> usize {
        4096 * (2 * usize::from(QUEUES + 1) + 1)
    }

    fn set_up(&mut self, io: &mut dyn Access, kind: Kind, memory: u64) -> Result<()> {
        if !memory.is_multiple_of(PAGE) {
            return Err(
                Error::new(format!("nvme's queues cannot begin at {memory:#x}")).remedy("a page's start")
            );
        }
        self.quiet(io)?;
        let capabilities = io.read(0, CAP, 8);
        if capabilities & 0xffff < u64::from(DEPTH - 1) {
            return Err(Error::new(format!(
                "nvme has queues of {} entries only",
                (capabilities & 0xffff) + 1
            )));
        }
        self.stride = 4 << (capabilities >> 32 & 0xf);
        self.memory = memory;
        for page in 0..2 * (QUEUES + 1) {
            io.write_memory(self.page(page), &[0; 4096]);
        }
        let depth = u32::from(DEPTH - 1);
        set(io, AQA, depth << 16 | depth);
        io.write(0, ASQ, 8, self.page(0));
        io.write(0, ACQ, 8, self.page(1));
        set(io, CC, ENABLE);
        wait("nvme getting ready", Duration::from_millis(1), || get(io, CSTS) & (READY | FATAL) != 0)?;
        if get(io, CSTS) & FATAL != 0 {
            return Err(Error::new("nvme reports a fatal error when enabled (CSTS.CFS)")
                .remedy("check that its memory is mapped for DMA"));
        }
        self.queues = vec![Queue::default()];
        if kind == Kind::Msix { self.create_queues(io) } else { Ok(()) }
    }

    fn raise(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        self.raise_many(io, vector, 1)
    }

    fn raise_many(&mut self, io: &mut dyn Access, vector: u16, times: u16) -> Result<()> {
        let command = if vector == 0 {
            Command { opcode: GET_FEATURES, dword10: NUMBER_OF_QUEUES, ..Command::default() }
        } else {
            Command { opcode: FLUSH, namespace: 1, ..Command::default() }
        };
        self.submit(io, vector, command, times)
    }

    fn acknowledge(&mut self, io: &mut dyn Access, vector: u16) -> Result<()> {
        checked("nvme", vector, u16::try_from(self.queues.len()).unwrap_or(u16::MAX))?;
        self.reap(io, vector).map(|_| ())
    }

    fn silence(&self) -> Option<(u64, u32)> {
        Some((INTMS, 1))
    }

    fn listen_again(&mut self, io: &mut dyn Access) {
        set(io, INTMC, 1);
    }

    fn quiet(&mut self, io: &mut dyn Access) -> Result<()> {
        for queue in 0..u16::try_from(self.queues.len()).unwrap_or(0) {
            // So that the pin falls. What failed is of no interest any more.
            let _ = self.reap(io, queue);
        }
        self.queues.clear();
        let control = get(io, CC);
        set(io, CC, control & !1);
        wait("nvme stopping", Duration::from_millis(1), || get(io, CSTS) & READY == 0)
    }
}
