//! How the guest attacks its machine: what is drawn from a seed, before anything is touched.
//!
//! `probe.attack=seed:7,rounds:60,kinds:chains+ports`; every part may be left out. A round is
//! [`BLOWS`] blows of one kind. What is drawn never depends on what a device answers, so that a
//! seed gives the same rounds everywhere.
//!
//! An attack may not harm the guest itself, or nobody could tell what the machine did wrong:
//! whatever a device could write goes to the arena (see [`Ground`]) or nowhere, and what ends,
//! restarts or deafens a guest by right is left out.

mod access;
mod chain;
mod dice;

use core::fmt;
use core::str::FromStr;

pub use access::{PortAccess, SpaceAccess, port_access, register_access, space_access};
pub use chain::{Chain, Descriptor, INDIRECT, NEXT, TABLE, WRITE, chain, torn_descriptor};
pub use dice::Dice;

/// Blows in a round.
pub const BLOWS: u32 = 32;

/// What is attacked in a round, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Chains that loop, leave their table, wrap, are absurdly long or nested, in rings with
    /// indices that leap.
    Chains = 0,
    /// Devices are reset and set up anew while requests are on their way.
    Resets = 1,
    /// Registers of a device that runs are written, of any width and at any place; queues move.
    Registers = 2,
    /// Rings and tables change while the device reads them, and devices write into them.
    Races = 3,
    /// Ports, one by one and as strings.
    Ports = 4,
    /// Addresses where nothing is, of any width, across the edges of what is there.
    Space = 5,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Chains, Self::Resets, Self::Registers, Self::Races, Self::Ports, Self::Space];

    /// Its name in `probe.attack=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Chains => "chains",
            Self::Resets => "resets",
            Self::Registers => "registers",
            Self::Races => "races",
            Self::Ports => "ports",
            Self::Space => "space",
        }
    }

    /// Whether it strikes one device.
    pub const fn has_device(self) -> bool {
        !matches!(self, Self::Ports | Self::Space)
    }
}

/// Spares no device: the network, too, which is brought up again after each round.
const NET: (&str, u8) = ("net", 1 << 6);
/// After the last round the guest does what no machine can go on from.
const END: (&str, u8) = ("end", 1 << 7);

/// What the command line asks for. The default is everything for ever, but [`Kinds`] `net` and
/// `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// Draws everything.
    pub seed: u64,
    /// How many rounds; 0: for ever.
    pub rounds: u64,
    /// What is done.
    pub kinds: Kinds,
}

impl Default for Attack {
    fn default() -> Self {
        Self { seed: 1, rounds: 0, kinds: Kinds(0x3f) }
    }
}

/// A set of [`Kind`]s, with `net` and `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// Whether `kind` is among them.
    pub const fn has(self, kind: Kind) -> bool {
        self.0 >> kind as u8 & 1 == 1
    }

    /// Whether the network device is attacked, too.
    pub const fn has_net(self) -> bool {
        self.0 & NET.1 != 0
    }

    /// Whether the last blow is to end the guest.
    pub const fn has_end(self) -> bool {
        self.0 & END.1 != 0
    }

    /// The kind of the next round.
    pub fn draw(self, dice: &mut Dice) -> Kind {
        loop {
            let kind = dice.one_of(&Kind::ALL);
            if self.has(kind) {
                return kind;
            }
        }
    }
}

/// Why an attack's text was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttackError {
    /// A part without a colon, or with an unknown key.
    #[error("unknown part; known are seed:, rounds:, kinds:")]
    Key,
    /// A number that is none.
    #[error("seed and rounds must be decimal numbers")]
    Number,
    /// Not a list of kinds, or one without a kind to fill a round with.
    #[error(
        "kinds are one or more of chains+resets+registers+races+ports+space, and net or end with them"
    )]
    Kinds,
}

impl FromStr for Attack {
    type Err = AttackError;

    fn from_str(text: &str) -> Result<Self, AttackError> {
        let mut attack = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once(':').ok_or(AttackError::Key)?;
            match key {
                "seed" => attack.seed = value.parse().map_err(|_| AttackError::Number)?,
                "rounds" => attack.rounds = value.parse().map_err(|_| AttackError::Number)?,
                "kinds" => attack.kinds = value.parse()?,
                _ => return Err(AttackError::Key),
            }
        }
        Ok(attack)
    }
}

impl FromStr for Kinds {
    type Err = AttackError;

    fn from_str(text: &str) -> Result<Self, AttackError> {
        let named = |name: &str| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
            let other = [NET, END].into_iter().find(|(known, _)| *known == name);
            kind.map(|kind| 1 << kind as u8).or(other.map(|(_, bit)| bit))
        };
        let mut bits = 0;
        for name in text.split('+') {
            bits |= named(name).ok_or(AttackError::Kinds)?;
        }
        if bits & Attack::default().kinds.0 == 0 { Err(AttackError::Kinds) } else { Ok(Self(bits)) }
    }
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed:{},rounds:{},kinds:", self.seed, self.rounds)?;
        let names = Kind::ALL.map(|kind| (kind.name(), 1 << kind as u8));
        let mut plus = "";
        for (name, bit) in names.into_iter().chain([NET, END]) {
            if self.kinds.0 & bit != 0 {
                write!(f, "{plus}{name}")?;
                plus = "+";
            }
        }
        Ok(())
    }
}

/// Bytes of the arena.
pub const ARENA_BYTES: u64 = 0x20000;
/// Where the guest's buffers are in it; before them are the rings.
pub const BUFFERS: u64 = 0x10000;
/// Nothing is plugged in between RAM and this address.
pub const SLOTS: u64 = 0xd000_0000;
/// From here on are interrupt controllers and what KVM keeps for itself.
pub const SPACE_END: u64 = 0xfec0_0000;

/// Where the attack takes place.
#[derive(Clone, Copy, Debug)]
pub struct Ground {
    /// The only memory that a device is let write: [`ARENA_BYTES`], aligned to a page.
    pub arena: u64,
    /// Where RAM below 4 GiB ends.
    pub ram_end: u64,
    /// Where the slots of devices end.
    pub slots_end: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn text_round_trips() {
        for text in ["seed:7,rounds:60,kinds:chains+ports+net", "seed:0,rounds:0,kinds:space+end"] {
            assert_eq!(text.parse::<Attack>().unwrap().to_string(), text);
        }
        let everything = "seed:1,rounds:0,kinds:chains+resets+registers+races+ports+space";
        assert_eq!("".parse::<Attack>().unwrap().to_string(), everything);
    }

    #[test]
    fn wrong_parts_are_refused() {
        assert_eq!("seed".parse::<Attack>(), Err(AttackError::Key));
        assert_eq!("rounds:many".parse::<Attack>(), Err(AttackError::Number));
        for kinds in ["kinds:", "kinds:noise", "kinds:net+end", "kinds:ports+"] {
            assert_eq!(kinds.parse::<Attack>(), Err(AttackError::Kinds), "{kinds}");
        }
    }

    #[test]
    fn only_kinds_that_were_asked_for_are_drawn() {
        let kinds: Kinds = "ports+races+net".parse().unwrap();
        let mut dice = Dice::new(3);
        let mut drawn = [0; 6];
        (0..200).for_each(|_| drawn[kinds.draw(&mut dice) as usize] += 1);
        assert!(drawn[3] > 50 && drawn[4] > 50 && drawn[3] + drawn[4] == 200, "{drawn:?}");
    }
}
