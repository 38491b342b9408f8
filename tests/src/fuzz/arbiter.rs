//! The arbiter's register: requests of any node in any order, the file, and
//! what is found in etcd.

use std::collections::BTreeMap;

use arbiter::{FileStore, Outcome, Record, Register, Store, StoreId, Term, VmId};
use transport::wire::{self, Answer, Ask, Frame, HEADER_BYTES, Header};

use super::{Verdict, scratch};

/// Frames, one after the other, as nodes ask the arbiter; answered as it would,
/// from a store without a disk.
pub(super) fn run(bytes: &[u8]) -> Verdict {
    let mut records: BTreeMap<VmId, Record> = BTreeMap::new();
    let mut verdict = Verdict::Refused;
    let mut rest = bytes;
    while let Some((head, body)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(header) = Header::decode(head) else { break };
        let Some((body, left)) = body.split_at_checked(header.body_bytes as usize) else { break };
        rest = left;
        let Ok(Frame::Ask(ask)) = header.decode_body(body) else { continue };
        let answer = Frame::Answer(answer(&mut records, ask));
        let spelled = wire::encode(Term::ZERO, &answer);
        assert!(spelled.is_ok_and(|bytes| wire::decode(&bytes) == Ok((Term::ZERO, answer))));
        verdict = Verdict::Taken;
    }
    verdict
}

fn answer(records: &mut BTreeMap<VmId, Record>, ask: Ask) -> Answer {
    match ask {
        Ask::Load(vm) => Answer::Record(records.get(&vm).cloned()),
        Ask::Identify => Answer::Registers(StoreId::Own),
        Ask::List(_) => Answer::Records {
            records: records.clone().into_iter().take(wire::LIST_RECORDS_MAX).collect(),
            more: records.len() > wire::LIST_RECORDS_MAX,
        },
        Ask::Execute(vm, request) => {
            let current = records.get(&vm);
            match request.decide(current) {
                Ok(Outcome::Set(register)) => {
                    check(current.map(|record| &record.register), &register);
                    let record = Record { register: register.clone(), stamp: request.stamp };
                    records.insert(vm, record);
                    // More members than a frame carries are not told.
                    if records.values().any(|r| r.register.in_sync.len() > wire::MEMBERS_MAX) {
                        records.clear();
                        return Answer::Denied("too many".into());
                    }
                    Answer::Outcome(Outcome::Set(register))
                }
                Ok(mismatch) => Answer::Outcome(mismatch),
                Err(illegal) => Answer::Denied(illegal.to_string()),
            }
        }
    }
}

/// Terms only rise, and nobody but a member takes over.
fn check(current: Option<&Register>, next: &Register) {
    let Some(current) = current else { return assert_eq!(next.term, Term::FIRST) };
    if next != current {
        assert_eq!(Some(next.term), current.term.next(), "a term that does not rise by one");
        let kept = next.primary == current.primary;
        assert!(kept || current.in_sync.contains_key(&next.primary), "{current} then {next}");
    }
    assert!(!next.in_sync.contains_key(&next.primary), "{next}");
}

/// A register file: as it is, or, after a byte of 1, as the body of one whose
/// digest is right.
pub(super) fn run_file(bytes: &[u8]) -> Verdict {
    let folder = scratch::folder();
    let path = folder.path().join("register");
    let content = match bytes.split_first() {
        Some((1, body)) => {
            let head = format!("romulus-register 2 {}\n", blake3::hash(body).to_hex());
            [head.as_bytes(), body].concat()
        }
        _ => bytes.to_vec(),
    };
    std::fs::write(&path, content).expect("a folder of our own");
    let opened = FileStore::open(&path);
    if let Ok(store) = &opened {
        for (vm, record) in store.list().expect("it is sound") {
            assert_eq!(store.load(&vm).expect("it is sound"), Some(record));
        }
    }
    Verdict::of(&opened)
}

/// What stands under a VM's key.
pub(super) fn run_etcd_value(bytes: &[u8]) -> Verdict {
    let read = etcd::spelling::read(bytes);
    if let Ok(record) = &read {
        assert_eq!(etcd::spelling::read(&etcd::spelling::spell(record)).as_ref(), Ok(record));
    }
    Verdict::of(&read)
}
