//! Golden bytes and refusals of the message layouts.

use super::*;
use std::vec::Vec;

fn answers() -> [Answer; 4] {
    let vcpu = core::array::from_fn(|i| VcpuCounters { progress: i as u64, ticks: 100 + i as u64 });
    [
        Answer::Ask(AskAnswer {
            status: AskStatus::Repeat,
            client: 3,
            vcpus: 2,
            asked_seq: 5,
            nonce: 6,
            seq: 7,
            digest: 8,
            answers: 9,
            corrupt_pages: 10,
            first_bad: 11,
            tsc: 12,
            kvm_clock_ns: 13,
            vcpu,
        }),
        Answer::Pattern(PatternAnswer { pattern: Pattern::default(), pages_max: 1, changes: 2 }),
        Answer::Verify(VerifyAnswer {
            state: VerifyState::Done,
            scope: VerifyScope::ALL,
            run: 1,
            checked_pages: 2,
            fill_pages: 3,
            bad_pages: 4,
            first_bad: 5,
            digest: 6,
        }),
        Answer::Stats(StatsAnswer {
            vcpus: 8,
            memory_mib: 512,
            written_pages: 1,
            fill_pages: 2,
            filled_pages: 3,
            corrupt_pages: 4,
            net_interrupts: 5,
            rx_frames: 6,
            tx_frames: 7,
            tx_dropped: 8,
            tsc: 9,
            kvm_clock_ns: 10,
            tsc_khz: 11,
            vcpu,
        }),
    ]
}

fn requests() -> [Request; 6] {
    [
        Request::Ask(Ask { client: 1, seq: 2, nonce: 3 }),
        Request::PatternGet,
        Request::PatternSet("pages:9,rate:8,write:sparse,content:zero".parse().unwrap()),
        Request::VerifyStart { run: 4, scope: VerifyScope { working_set: false, fill: true } },
        Request::VerifyPoll,
        Request::Stats,
    ]
}

#[test]
fn golden_bytes() {
    let ask = Request::Ask(Ask { client: 0x0102, seq: 0x0304, nonce: 0x0506 }).encode();
    let mut wanted = Vec::from(*b"RPRB\x01\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00");
    wanted.extend([4, 3, 0, 0, 0, 0, 0, 0, 6, 5, 0, 0, 0, 0, 0, 0]);
    assert_eq!(*ask, *wanted);

    let set = requests()[2].encode();
    let mut wanted = Vec::from(*b"RPRB\x01\x02\x00\x00\x01\x01\x03\x00\x00\x00\x00\x00");
    wanted.extend([9, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(*set, *wanted);

    let verify = requests()[3].encode();
    assert_eq!(
        *verify,
        *b"RPRB\x01\x03\x00\x00\x01\x02\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00"
    );
    assert_eq!(*Request::Stats.encode(), *b"RPRB\x01\x04\x00\x00");

    let lens: Vec<usize> = answers().iter().map(|answer| answer.encode().len()).collect();
    assert_eq!(lens, [216, 48, 64, 232]);
    let ask = answers()[0].encode();
    assert_eq!(ask[..16], *b"RPRB\x01\x81\x01\x00\x03\x00\x00\x00\x02\x00\x00\x00");
    assert_eq!(ask[80..88], 13u64.to_le_bytes());
    assert_eq!(ask[104..120], [1, 0, 0, 0, 0, 0, 0, 0, 101, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn everything_round_trips() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    for answer in answers() {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    for request in requests() {
        let message = request.encode();
        for len in 0..message.len() {
            assert!(Request::decode(&message[..len]).is_err());
        }
        let mut longer = message.to_vec();
        longer.push(0);
        assert_eq!(Request::decode(&longer), Err(DecodeError::Length { got: message.len() + 1 }));
    }
}

#[test]
fn what_decodes_encodes_to_the_same_bytes() {
    // Every single-octet change of every message: refused, or a different, canonical message.
    for message in answers().map(|answer| answer.encode()) {
        for at in 0..message.len() {
            let mut bytes = message.to_vec();
            bytes[at] ^= 0x10;
            if let Ok(answer) = Answer::decode(&bytes) {
                assert_eq!(*answer.encode(), *bytes);
            }
        }
    }
}

#[test]
fn a_request_is_not_an_answer() {
    assert_eq!(Answer::decode(&Request::Stats.encode()), Err(DecodeError::Kind { got: 4 }));
    assert_eq!(Request::decode(&answers()[3].encode()), Err(DecodeError::Kind { got: 0x84 }));
}
