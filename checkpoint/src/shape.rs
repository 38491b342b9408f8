//! The shape of a virtual machine: what must agree between two nodes before a
//! guest is touched, and how a difference is told.
//!
//! The backup compares its own [`Machine`] with the primary's. A [`Trait`]
//! says by its kind when it agrees, so that a difference can be named word by
//! word (`avx512f only there`) and not merely found.
//!
//! What is told is bounded, as a peer's traits are whatever it sends.

use std::{collections::BTreeSet, fmt};

use crate::MemoryLayout;

/// Most words of one trait that a difference names.
const WORDS_SHOWN_MAX: usize = 16;
/// Most traits that a difference names.
const TRAITS_SHOWN_MAX: usize = 4;
/// Most characters of one value that a difference shows.
const VALUE_SHOWN_MAX: usize = 200;
/// Most bytes of a difference without its remedy: both fit a frame's words.
const DIFFERENCE_BYTES_MAX: usize = 3072;

/// What to do, by the first word of the trait that differs.
const REMEDIES: [(&str, &str); 7] = [
    (
        "cpu",
        "set vm.cpu on both nodes to one model that both offer (`romulus doctor`), or leave features out of both with vm.cpu_without",
    ),
    ("cpuid", "set vm.cpu on both nodes to one model that both offer (`romulus doctor`)"),
    ("kvm", "run the same kind of KVM on both nodes (`romulus doctor`)"),
    ("msr", "set vm.cpu on both nodes to one model that both offer (`romulus doctor`)"),
    (
        "msrs",
        "run kernels of the same version on both nodes, or set vm.cpu on both to a smaller model",
    ),
    (
        "tsc",
        "use hosts of the same TSC frequency, or a backup whose KVM scales it (`romulus doctor`)",
    ),
    ("xsave", "set vm.cpu on both nodes to one model that both offer (`romulus doctor`)"),
];
const REMEDY_ELSE: &str = "configure both nodes alike";

/// The shape of a virtual machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Where RAM lies.
    pub layout: MemoryLayout,
    /// How many vCPUs.
    pub vcpus: u16,
    /// Everything else that must agree, by name: devices and their addresses,
    /// and what the guest may use of the host's CPU.
    pub traits: Traits,
}

/// Traits by name.
pub type Traits = std::collections::BTreeMap<String, Trait>;

/// One thing about a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trait {
    /// Must be equal.
    Text(String),
    /// Must be the same words; those that are not are named.
    Words(BTreeSet<String>),
    /// The primary's words must be among the backup's.
    Needs(BTreeSet<String>),
    /// The primary's value must be what the backup can serve.
    Number {
        /// What it is for the guest.
        value: u64,
        /// The least that this node could serve.
        least: u64,
        /// The most that this node could serve.
        most: u64,
    },
}

impl From<&str> for Trait {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Trait {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl fmt::Display for Trait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&cut(text)),
            Self::Words(words) | Self::Needs(words) => f.write_str(&list(words)),
            Self::Number { value, .. } => write!(f, "{value}"),
        }
    }
}

impl Machine {
    /// Why this node cannot stand by for a primary of the shape `primary`, in
    /// words for an operator, or `None` if it can.
    #[must_use]
    pub fn difference(&self, primary: &Self) -> Option<String> {
        if self.layout != primary.layout {
            let mib = |machine: &Self| machine.layout.page_count() / 256;
            let (ours, theirs) = (mib(self), mib(primary));
            return Some(format!(
                "memory differs: {ours} MiB here, {theirs} MiB there: {REMEDY_ELSE}"
            ));
        }
        if self.vcpus != primary.vcpus {
            let (ours, theirs) = (self.vcpus, primary.vcpus);
            return Some(format!("vCPUs differ: {ours} here, {theirs} there: {REMEDY_ELSE}"));
        }
        difference(&self.traits, &primary.traits)
    }
}

/// Why a node with the traits `ours` cannot stand by for a primary with the
/// traits `primary`, in words for an operator, or `None` if it can.
#[must_use]
pub fn difference(ours: &Traits, primary: &Traits) -> Option<String> {
    let names: BTreeSet<_> = ours.keys().chain(primary.keys()).collect();
    let differing: Vec<_> = names
        .into_iter()
        .filter_map(|name| Some((name, objection(name, ours.get(name), primary.get(name))?)))
        .collect();
    let (first, _) = differing.first()?;
    let mut told: Vec<_> =
        differing.iter().take(TRAITS_SHOWN_MAX).map(|(_, told)| told.clone()).collect();
    if let Some(more) = differing.len().checked_sub(TRAITS_SHOWN_MAX).filter(|more| *more > 0) {
        told.push(format!("and {more} more"));
    }
    let told = told.join("; ");
    let cut = &told[..told.floor_char_boundary(DIFFERENCE_BYTES_MAX)];
    Some(format!("{cut}: {}", remedy(first)))
}

/// What is wrong with `theirs` at a node that has `ours`.
fn objection(name: &str, ours: Option<&Trait>, theirs: Option<&Trait>) -> Option<String> {
    let name = cut(name);
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => {
            disagreement(ours, theirs).map(|told| format!("{name} {told}"))
        }
        (Some(ours), None) => Some(format!("{name} differs: {ours} here, none there")),
        (None, Some(theirs)) => Some(format!("{name} differs: none here, {theirs} there")),
        (None, None) => None,
    }
}

fn disagreement(ours: &Trait, theirs: &Trait) -> Option<String> {
    match (ours, theirs) {
        (Trait::Text(ours), Trait::Text(theirs)) => {
            (ours != theirs).then(|| format!("differs: {} here, {} there", cut(ours), cut(theirs)))
        }
        (Trait::Words(ours), Trait::Words(theirs)) => words_differ(ours, theirs),
        (Trait::Needs(ours), Trait::Needs(theirs)) => {
            let lacking: BTreeSet<_> = theirs.difference(ours).cloned().collect();
            (!lacking.is_empty()).then(|| format!("lacks here what is there: {}", list(&lacking)))
        }
        (Trait::Number { least, most, .. }, Trait::Number { value, .. }) => (!(least..=most)
            .contains(&value))
        .then(|| format!("differs: {value} there, {least} to {most} are possible here")),
        // Two builds that mean different things by this name.
        (Trait::Text(_) | Trait::Words(_) | Trait::Needs(_) | Trait::Number { .. }, _) => {
            Some(format!("differs: {ours} here, {theirs} there"))
        }
    }
}

fn words_differ(ours: &BTreeSet<String>, theirs: &BTreeSet<String>) -> Option<String> {
    let here: BTreeSet<_> = ours.difference(theirs).cloned().collect();
    let there: BTreeSet<_> = theirs.difference(ours).cloned().collect();
    let only = |words: &BTreeSet<String>, place| format!("{} only {place}", list(words));
    match (here.is_empty(), there.is_empty()) {
        (true, true) => None,
        (false, true) => Some(format!("differ: {}", only(&here, "here"))),
        (true, false) => Some(format!("differ: {}", only(&there, "there"))),
        (false, false) => {
            Some(format!("differ: {}, {}", only(&there, "there"), only(&here, "here")))
        }
    }
}

/// The words, bounded.
fn list(words: &BTreeSet<String>) -> String {
    if words.is_empty() {
        return "none".to_owned();
    }
    let mut shown: Vec<_> = words.iter().take(WORDS_SHOWN_MAX).map(|word| cut(word)).collect();
    if let Some(more) = words.len().checked_sub(WORDS_SHOWN_MAX).filter(|more| *more > 0) {
        shown.push(format!("{more} more"));
    }
    shown.join(" ")
}

fn cut(text: &str) -> String {
    text.chars().take(VALUE_SHOWN_MAX).collect()
}

fn remedy(name: &str) -> &'static str {
    let first = name.split_whitespace().next().unwrap_or_default();
    let known = REMEDIES.iter().find(|(word, _)| *word == first);
    known.map_or(REMEDY_ELSE, |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageNumber, PageRun};

    fn machine<const N: usize>(traits: [(&str, Trait); N]) -> Machine {
        let run = PageRun { first: PageNumber::new(0), count: 512 };
        Machine {
            layout: MemoryLayout::new(vec![run]).unwrap(),
            vcpus: 2,
            traits: traits.map(|(name, value)| (name.to_owned(), value)).into(),
        }
    }

    fn words(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn told(backup: Trait, primary: Trait) -> Option<String> {
        machine([("cpu x", backup)]).difference(&machine([("cpu x", primary)]))
    }

    #[test]
    fn words_that_differ_are_named_with_a_remedy() {
        let (small, large) = (Trait::Words(words("fpu sse")), Trait::Words(words("fpu avx512f")));
        assert_eq!(told(small.clone(), small.clone()), None);
        let told = told(small, large).unwrap();
        assert!(told.starts_with("cpu x differ: avx512f only there, sse only here: "), "{told}");
        assert!(told.contains("set vm.cpu"), "{told}");
    }

    #[test]
    fn a_backup_may_have_more_of_what_is_needed() {
        let (few, more) = (Trait::Needs(words("0x10")), Trait::Needs(words("0x10 0x1b")));
        assert_eq!(told(more.clone(), few.clone()), None);
        let told = told(few, more).unwrap();
        assert!(told.starts_with("cpu x lacks here what is there: 0x1b: "), "{told}");
    }

    #[test]
    fn a_number_is_compared_with_what_the_backup_can_serve() {
        let number = |value, least, most| Trait::Number { value, least, most };
        assert_eq!(told(number(10, 9, 11), number(11, 11, 11)), None);
        let told = told(number(10, 9, 11), number(12, 0, 100)).unwrap();
        let expected = "cpu x differs: 12 there, 9 to 11 are possible here: ";
        assert!(told.starts_with(expected), "{told}");
    }

    #[test]
    fn what_only_one_side_has_or_means_otherwise_is_refused() {
        let one = machine([("devices", "a".into())]);
        let none = machine([]);
        let told_first = one.difference(&none).unwrap();
        assert_eq!(told_first, "devices differs: a here, none there: configure both nodes alike");
        assert!(none.difference(&one).unwrap().contains("none here, a there"));
        let told = told("a".into(), Trait::Words(words("a"))).unwrap();
        assert!(told.starts_with("cpu x differs: a here, a there"), "{told}");
    }

    #[test]
    fn a_difference_is_bounded_whatever_a_peer_sends() {
        let long =
            |letter: &str| Trait::Words((0..900).map(|n| format!("{letter}{n:0200}")).collect());
        let many = |letter: &str| {
            let mut machine = machine([]);
            for n in 0..900 {
                machine.traits.insert(format!("{n:0250}"), long(letter));
            }
            machine
        };
        let told = many("a").difference(&many("b")).unwrap();
        assert!(told.len() < 4096, "{} bytes", told.len());
        assert!(told.ends_with(REMEDY_ELSE), "{told}");
    }
}
