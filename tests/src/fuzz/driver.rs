//! Inputs without a fuzzer: bytes that are mostly small or round, and mutations of those that came before. Sees no
//! coverage; the entry points read their bytes so that most of them mean something.

/// `splitmix64`: good enough, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        let [choice, byte, ..] = self.next().to_le_bytes();
        match choice {
            0..0x20 => 0,
            0x20..0x30 => 0xff,
            0x30..0x60 => byte & 15,
            0x60..0x70 => 1 << (byte & 7),
            _ => byte,
        }
    }
}

/// The longest input made.
pub const LONGEST: usize = 1024;
/// Inputs kept to be mutated.
const POOL: usize = 64;

/// An endless line of inputs.
#[derive(Clone, Debug)]
pub struct Inputs {
    random: Random,
    pool: Vec<Vec<u8>>,
}

impl Inputs {
    /// The same inputs for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), pool: Vec::new() }
    }

    /// Makes the next one.
    pub fn make(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = match self.pool.len() {
            known if known > 0 && random.below(4) > 0 => {
                let mut input = self.pool[random.below(known)].clone();
                for _ in 0..=random.below(4) {
                    mutate(&mut input, random, &self.pool);
                }
                input
            }
            _ => {
                // Short ones as often as long ones.
                let most = 4 << random.below(9);
                (0..random.below(most)).map(|_| random.byte()).collect()
            }
        };
        input.truncate(LONGEST);
        if self.pool.len() < POOL {
            self.pool.push(input.clone());
        } else if random.below(8) == 0 {
            let at = random.below(POOL);
            self.pool[at].clone_from(&input);
        }
        input
    }
}

fn mutate(input: &mut Vec<u8>, random: &mut Random, pool: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(32) + 1);
    match random.below(7) {
        0 => input.insert(at, random.byte()),
        1 => drop(input.drain(at..end)),
        2 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        3 => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        4 if at < input.len() => input[at] ^= 1 << random.below(8),
        5 if at < input.len() => {
            input[at] = input[at].wrapping_add(if random.below(2) == 0 { 1 } else { 0xff })
        }
        _ if at < input.len() => input[at] = random.byte(),
        _ => {}
    }
}

/// A shorter input that still `fails`, by leaving out pieces as long as that works.
pub fn shrink(mut input: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut piece = input.len().div_ceil(2);
    while piece > 0 {
        let (mut at, before) = (0, input.len());
        while at < input.len() {
            let mut shorter = input.clone();
            drop(shorter.drain(at..(at + piece).min(input.len())));
            if fails(&shorter) {
                input = shorter;
            } else {
                at += piece;
            }
        }
        if input.len() == before {
            piece /= 2;
        }
    }
    input
}
