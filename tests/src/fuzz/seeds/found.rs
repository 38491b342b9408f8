//! What was found, and was a bug: each input has its name from what it says.

use arbiter::{Operation, Register, Request, Stamp, Term};
use transport::wire::{self, Ask, Frame};

use super::{
    Add,
    machines::{self, step},
};
use crate::fuzz::{backup, primary};

/// `number_near`: 2^64 - 1, and one less.
const LAST: u8 = 0xff;
const LAST_BUT_ONE: u8 = 0xfe;

pub(super) fn all(add: &mut Add<'_>) {
    arbiter(add);
    of_primary(add);
    of_backup(add);
}

/// Ended the arbiter for all VMs.
fn arbiter(add: &mut Add<'_>) {
    let caller: arbiter::NodeId = "a".parse().expect("a name");
    let expected =
        Some(Register { term: Term::new(u64::MAX), primary: caller.clone(), in_sync: [].into() });
    let request = Request { caller, expected, operation: Operation::Restart, stamp: Stamp::new(1) };
    let ask = Frame::Ask(Ask::Execute("vm".parse().expect("a name"), request));
    let spelled = wire::encode(Term::ZERO, &ask).expect("within all limits");
    add("register", "the-last-term-is-expected", spelled);
}

/// Ended the primary.
fn of_primary(add: &mut Add<'_>) {
    use primary::{ANSWERED, LINK_DOWN, LINK_UP, MEDDLE, TIMEOUT};
    let served = machines::protected();
    let down = step(LINK_DOWN, 4, &[1]);
    let imaged = step(LINK_UP, 4, &[1, LAST, 0x40, 1, 0]);
    add("primary", "a-backup-has-the-last-epoch", [served.clone(), down.clone(), imaged].concat());
    let silent = [down, step(TIMEOUT, 0xe0, &200_u16.to_le_bytes())].concat();
    // Nobody has asked for a register with all nodes in sync.
    let lie = step(ANSWERED, 4, &[0xfc, 0, 0x0e, 0, 0, 0, 0xc0, 0x41]);
    add(
        "primary",
        "the-arbiter-sets-another-register",
        [served.clone(), silent.clone(), lie].concat(),
    );
    let lost = [served, step(MEDDLE, 4, &[1]), silent, step(ANSWERED, 4, &[0])];
    // It went on after its end.
    add("primary", "a-link-is-silent-when-it-ends", lost.concat());
}

/// Ended the backup, or the primary that it became.
fn of_backup(add: &mut Add<'_>) {
    use backup::{EPOCH, HEARD, SEED};
    let seed = step(SEED, 4, &[1, 1, 0, 0, 1, 0]);
    for (name, number) in [("last", LAST), ("last-but-one", LAST_BUT_ONE)] {
        let epoch = step(EPOCH, 4, &[number, 1, 0]);
        add("backup", &format!("the-{name}-epoch-is-closed"), [seed.clone(), epoch].concat());
    }
    let whole = [seed, step(EPOCH, 4, &[0x40, 1, 0])].concat();
    // The register that is handed over: this node, and two more in sync.
    let handed = step(HEARD, 4, &[0, 0x3f, 4, 0, 0x06, 0, 0, 0xc0, 0x41]);
    add("backup", "it-hands-over-with-backups", [whole, handed].concat());
}
