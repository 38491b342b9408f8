//! The wire format: golden bytes of every kind of frame, and what happens to
//! bytes that are none.

use arbiter::{ImageId, Operation, Outcome, Record, Register, Request, Stamp, StoreId, Term, VmId};
use checkpoint::{
    Epoch, MemoryLayout, PageNumber, PageRun,
    chunk::{Chunk, ChunkId, ChunkKind, Encoding},
    message::{Close, HeldImage, Hello, Machine, Refusal, ToBackup, ToPrimary, Trait, Welcome},
};
use proptest::prelude::{Strategy, any, prop, prop_oneof, proptest};
use romulus_transport::wire::{
    self, Answer, Ask, Frame, HEADER_BYTES, Header, Kind, LIST_RECORDS_MAX, MEMBERS_MAX,
    TEXT_BYTES_MAX, WORDS_MAX, WireError,
};

const TERM: Term = Term::new(0x0102);
const IMAGE: ImageId = ImageId::new(6);

fn register(members: &[&str]) -> Register {
    Register {
        term: Term::new(7),
        primary: "a".parse().unwrap(),
        in_sync: members.iter().map(|name| (name.parse().unwrap(), IMAGE)).collect(),
    }
}

fn vm() -> VmId {
    "vm".parse().unwrap()
}

fn record() -> Record {
    Record { register: register(&["b"]), stamp: Stamp::new(9) }
}

fn request(operation: Operation, expected: Option<Register>) -> Request {
    Request { caller: "a".parse().unwrap(), expected, operation, stamp: Stamp::new(9) }
}

fn machine() -> Machine {
    let run = PageRun { first: PageNumber::new(1), count: 2 };
    Machine {
        layout: MemoryLayout::new(vec![run]).unwrap(),
        vcpus: 3,
        traits: [
            ("k".to_owned(), Trait::Text("v".into())),
            ("l".to_owned(), Trait::Words(["a".to_owned(), "b".to_owned()].into())),
            ("m".to_owned(), Trait::Needs(["c".to_owned()].into())),
            ("n".to_owned(), Trait::Number { value: 5, least: 2, most: 8 }),
        ]
        .into(),
    }
}

fn chunk() -> Chunk {
    Chunk {
        id: ChunkId { epoch: Epoch::new(4), index: 5 },
        kind: ChunkKind::Sections,
        encoding: Encoding::Zstd,
        decoded_bytes: 6,
        body: vec![0xaa, 0xbb].into(),
        digest: [0xdd; 32],
    }
}

/// Frames of every kind with the octets of their bodies, in hex.
fn golden() -> Vec<(Frame, String)> {
    [golden_greetings(), golden_session(), golden_asks(), golden_answers()].concat()
}

fn number(value: u8) -> String {
    format!("{value:02x}00000000000000")
}

/// The register `{7, a, members}` for no or one member of one letter.
fn register_hex(member: Option<char>) -> String {
    let members = member
        .map_or("0000".to_owned(), |letter| format!("0100 01{:02x} {}", letter as u8, number(6)));
    format!("{} 0161 {members}", number(7))
}

fn golden_greetings() -> Vec<(Frame, String)> {
    let hello = Hello { versions: vec!["r/1".into()], vm: vm(), machine: machine() };
    let welcome = Welcome { version: "r/1".into(), image: None, staging_bytes_max: 8 };
    let held = HeldImage { id: IMAGE, committed: Epoch::new(2) };
    let imaged = Welcome { image: Some(held), ..welcome.clone() };
    let refusal = |refusal, hex: &str| (Frame::Refusal(refusal), hex.to_owned());
    let (one, two, six, eight) = (number(1), number(2), number(6), number(8));
    vec![
        (
            Frame::Hello(hello),
            format!(
                "0100 0300722f31 02766d 01 {one}{two} 0300 0400 01006b 01 010076
                 01006c 02 0200 010061 010062 01006d 03 0100 010063
                 01006e 04 {}{two}{eight}",
                number(5)
            ),
        ),
        (Frame::Welcome(welcome), format!("0300722f31 00 {eight}")),
        (Frame::Welcome(imaged), format!("0300722f31 01 {six} {two} {eight}")),
        refusal(Refusal::Version { spoken: vec!["r/2".into()] }, "01 0100 0300722f32"),
        refusal(Refusal::Machine { difference: "x".into() }, "02 010078"),
        refusal(Refusal::Stale { current: Term::new(8) }, &format!("03 {eight}")),
        refusal(Refusal::Promoting, "04"),
        refusal(Refusal::Unready { reason: "é".into() }, "05 0200c3a9"),
    ]
}

fn golden_session() -> Vec<(Frame, String)> {
    let (epoch, seed_chunks, digest) = (Epoch::new(2), Some(3), [0xcc; 32]);
    let joining = Close { epoch, seed_chunks, chunks: 4, pages: 5, digest };
    let close = Close { seed_chunks: None, ..joining.clone() };
    let (one, two, five) = (number(1), number(2), number(5));
    let (alone, pair) = (register_hex(None), register_hex(Some('b')));
    let (cc, dd) = ("cc".repeat(32), "dd".repeat(32));
    let to_backup = |message, hex: &str| (Frame::ToBackup(message), hex.to_owned());
    let to_primary = |message, hex: &str| (Frame::ToPrimary(message), hex.to_owned());
    let ack = ToPrimary::Ack { committed: epoch, applied: Epoch::FIRST };
    let hand_over = ToBackup::HandOver { epoch, register: register(&[]) };
    let nack = ToPrimary::Nack { epoch, chunks: vec![1, 9] };
    vec![
        to_backup(ToBackup::Heartbeat { ping: 2 }, &two),
        to_backup(ToBackup::BeginSeed { image: IMAGE }, &number(6)),
        to_backup(ToBackup::Close(joining), &format!("{two} 01 03000000 04000000 {five} {cc}")),
        to_backup(ToBackup::Close(close), &format!("{two} 00 00000000 04000000 {five} {cc}")),
        to_backup(ToBackup::Membership(register(&["b"])), &pair),
        to_backup(hand_over, &format!("{two} {alone}")),
        to_backup(ToBackup::Farewell { reason: "x".into() }, "010078"),
        to_backup(ToBackup::Verify { epoch }, &two),
        to_primary(ToPrimary::Heartbeat { pong: 5, steps: 2 }, &format!("{five}{two}")),
        to_primary(ToPrimary::Verified { epoch, digest }, &format!("{two} {cc}")),
        to_primary(ToPrimary::SeedAck { chunks: 3 }, "03000000"),
        to_primary(ack, &format!("{two}{one}")),
        to_primary(nack, &format!("{two} 0200 01000000 09000000")),
        (Frame::Chunk(chunk()), format!("01 01 0000 06000000 {dd} aabb")),
    ]
}

fn golden_asks() -> Vec<(Frame, String)> {
    let node = |name: &str| name.parse().unwrap();
    let ask = |ask, hex: &str| (Frame::Ask(ask), hex.to_owned());
    let execute = |operation, expected, hex: &str| {
        let hex = format!("02766d {} 0161 {hex}", number(9));
        ask(Ask::Execute(vm(), request(operation, expected)), &hex)
    };
    let (alone, pair) = (register_hex(None), register_hex(Some('b')));
    let switchover = |stands_by| Operation::Switchover { successor: node("b"), stands_by };
    let admit = Operation::Admit { backup: node("b"), image: IMAGE };
    let promote = Operation::Promote { image: IMAGE };
    let six = number(6);
    vec![
        ask(Ask::Load(vm()), "02766d"),
        ask(Ask::List(None), "00"),
        ask(Ask::List(Some(vm())), "01 02766d"),
        ask(Ask::Identify, ""),
        execute(Operation::Create, None, "01 00"),
        execute(Operation::Restart, Some(register(&[])), &format!("02 01 {alone}")),
        execute(admit, None, &format!("03 0162 {six} 00")),
        execute(Operation::Drop { backup: node("b") }, None, "04 0162 00"),
        execute(promote, Some(register(&["b"])), &format!("05 {six} 01 {pair}")),
        execute(switchover(None), None, "06 0162 00"),
        execute(switchover(Some(IMAGE)), None, &format!("07 0162 {six} 00")),
    ]
}

fn golden_answers() -> Vec<(Frame, String)> {
    let answer = |answer, hex: &str| (Frame::Answer(answer), hex.to_owned());
    let (alone, pair, nine) = (register_hex(None), register_hex(Some('b')), number(9));
    let records = Answer::Records { records: vec![(vm(), record())], more: true };
    let moved = Outcome::Mismatch(Some(register(&[])));
    vec![
        answer(Answer::Record(None), "00"),
        answer(Answer::Record(Some(record())), &format!("01 {nine} {pair}")),
        answer(Answer::Outcome(Outcome::Set(register(&["b"]))), &format!("01 {pair}")),
        answer(Answer::Outcome(Outcome::Mismatch(None)), "02 00"),
        answer(Answer::Outcome(moved), &format!("02 01 {alone}")),
        answer(records, &format!("01 0100 02766d {nine} {pair}")),
        answer(Answer::Denied("x".into()), "010078"),
        answer(Answer::Failed("x".into()), "010078"),
        answer(Answer::Unavailable("x".into()), "010078"),
        answer(Answer::Registers(StoreId::Own), "00"),
        answer(Answer::Registers(StoreId::Shared(9)), &format!("01 {nine}")),
    ]
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|digit| !digit.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn golden_bytes_of_every_kind() {
    let mut kinds: Vec<u8> = Vec::new();
    for (frame, hex) in golden() {
        let body = bytes_of(&hex);
        let kind = frame.kind();
        kinds.push(kind.code());
        let mut expected = bytes_of("526f");
        expected.extend([kind.code(), 0]);
        expected.extend((body.len() as u32).to_le_bytes());
        expected.extend(bytes_of("0201000000000000"));
        let is_chunk = matches!(frame, Frame::Chunk(_));
        expected.extend(bytes_of(if is_chunk {
            "0400000000000000 05000000"
        } else {
            "0000000000000000 00000000"
        }));
        assert_eq!(expected.len(), HEADER_BYTES);
        expected.extend(body);
        assert_eq!(wire::encode(TERM, &frame).unwrap(), expected, "{frame:?}");
        assert_eq!(wire::decode(&expected), Ok((TERM, frame)));
    }
    kinds.dedup();
    let all: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
    assert_eq!(kinds.into_iter().collect::<std::collections::BTreeSet<_>>(), all);
}

#[test]
fn codes_are_kept() {
    let codes: Vec<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
    let golden = [
        0x01, 0x02, 0x03, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x20, 0x21, 0x22, 0x23, 0x24,
        0x30, 0x40, 0x41, 0x42, 0x43, 0x50, 0x51, 0x52, 0x53, 0x54, 0x55, 0x56,
    ];
    assert_eq!(codes, golden);
}

#[test]
fn truncations_and_additions_are_refused() {
    for (frame, _) in golden() {
        let bytes = wire::encode(TERM, &frame).unwrap();
        for cut in 0..bytes.len() {
            assert!(wire::decode(&bytes[..cut]).is_err(), "{frame:?} cut at {cut} was taken");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(wire::decode(&longer), Err(WireError::Trailing(1)), "{frame:?}");
    }
}

/// Shortening body and header alike must not give a frame, but for bytes that
/// are content themselves.
#[test]
fn announced_truncations_are_refused() {
    for (frame, _) in golden() {
        if matches!(frame, Frame::Chunk(_)) {
            continue;
        }
        let bytes = wire::encode(TERM, &frame).unwrap();
        for cut in HEADER_BYTES..bytes.len() {
            let mut short = bytes[..cut].to_vec();
            short[4..8].copy_from_slice(&((cut - HEADER_BYTES) as u32).to_le_bytes());
            assert!(wire::decode(&short).is_err(), "{frame:?} cut at {cut} was taken");
        }
    }
}

#[test]
fn every_flipped_bit_gives_another_frame_or_an_error() {
    for (frame, _) in golden() {
        let bytes = wire::encode(TERM, &frame).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok((term, other)) = wire::decode(&flipped) {
                assert_ne!((term, &other), (TERM, &frame), "bit {bit} means nothing");
                assert_eq!(wire::encode(term, &other).unwrap(), flipped);
            }
        }
    }
}

#[test]
fn lengths_are_checked_before_anything_is_read() {
    for kind in Kind::ALL {
        let header = Header { kind: *kind, body_bytes: 0, term: TERM, chunk: None };
        let mut bytes = header.encode();
        let max = kind.body_bytes_max();
        bytes[4..8].copy_from_slice(&max.to_le_bytes());
        assert!(Header::decode(&bytes).is_ok());
        bytes[4..8].copy_from_slice(&(max + 1).to_le_bytes());
        let too_long = WireError::TooLong { kind: *kind, bytes: u64::from(max) + 1, max };
        assert_eq!(Header::decode(&bytes), Err(too_long));
    }
}

#[test]
fn what_is_too_large_to_say_is_not_said() {
    let many: Vec<String> = (0..=MEMBERS_MAX).map(|n| format!("n{n}")).collect();
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    let crowd = Frame::ToBackup(ToBackup::Membership(register(&names)));
    assert!(matches!(wire::encode(TERM, &crowd), Err(WireError::TooMany { .. })));
    let most = Frame::ToBackup(ToBackup::Membership(register(&names[1..])));
    assert!(wire::encode(TERM, &most).is_ok());
    let nack = ToPrimary::Nack { epoch: Epoch::FIRST, chunks: vec![0; 1025] };
    assert!(wire::encode(TERM, &Frame::ToPrimary(nack)).is_err());
    let full = (0..LIST_RECORDS_MAX).map(|n| (format!("v{n:03}").parse().unwrap(), record()));
    let full = Answer::Records { records: full.collect(), more: false };
    assert!(wire::encode(TERM, &Frame::Answer(full)).is_ok());
    let hello = |words: usize| {
        let words = (0..words).map(|n| format!("{n:04}")).collect();
        let traits = [("k".to_owned(), Trait::Words(words))].into();
        let machine = Machine { traits, ..machine() };
        Frame::Hello(Hello { versions: vec![], vm: vm(), machine })
    };
    assert!(wire::encode(TERM, &hello(WORDS_MAX)).is_ok());
    assert!(matches!(wire::encode(TERM, &hello(WORDS_MAX + 1)), Err(WireError::TooMany { .. })));
    // Words are cut, between characters.
    let reason = "é".repeat(TEXT_BYTES_MAX);
    let bytes = wire::encode(TERM, &Frame::ToBackup(ToBackup::Farewell { reason })).unwrap();
    let Ok((_, Frame::ToBackup(ToBackup::Farewell { reason }))) = wire::decode(&bytes) else {
        panic!("a long farewell is lost");
    };
    assert_eq!(reason.len(), TEXT_BYTES_MAX);
}

#[test]
fn the_newest_common_version_wins() {
    let offer = |versions: &[&str]| versions.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>();
    assert_eq!(wire::negotiate(&offer(&["romulus/9", "romulus/3"])), Some("romulus/3"));
    assert_eq!(wire::negotiate(&offer(&["romulus/9"])), None);
    assert_eq!(wire::negotiate(&[]), None);
}

fn name() -> impl Strategy<Value = String> {
    "[a-z]([a-z0-9-]{0,20}[a-z0-9])?"
}

fn any_register() -> impl Strategy<Value = Register> {
    (any::<u64>(), name(), prop::collection::btree_set(name(), 0..5)).prop_map(
        |(term, primary, in_sync)| Register {
            term: Term::new(term),
            primary: primary.parse().unwrap(),
            in_sync: in_sync.iter().map(|name| (name.parse().unwrap(), IMAGE)).collect(),
        },
    )
}

fn any_trait() -> impl Strategy<Value = Trait> {
    let words = || prop::collection::btree_set(".{0,9}", 0..5);
    prop_oneof![
        ".{0,50}".prop_map(Trait::Text),
        words().prop_map(Trait::Words),
        words().prop_map(Trait::Needs),
        any::<(u64, u64, u64)>().prop_map(|(value, least, most)| Trait::Number {
            value,
            least,
            most
        }),
    ]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let chunk = (any::<[u8; 32]>(), 0_u32..100_000, any::<Vec<u8>>(), any::<(u64, u32)>());
    let hello = (
        prop::collection::vec("[a-z/0-9]{0,64}", 0..5),
        name(),
        any::<u16>(),
        prop::collection::btree_map(".{0,20}", any_trait(), 0..9),
    );
    prop_oneof![
        chunk.prop_map(|(digest, decoded_bytes, body, (epoch, index))| Frame::Chunk(Chunk {
            id: ChunkId { epoch: Epoch::new(epoch), index },
            kind: ChunkKind::Pages,
            encoding: Encoding::Raw,
            decoded_bytes,
            body: body.into(),
            digest,
        })),
        hello.prop_map(|(versions, vm, vcpus, traits)| Frame::Hello(Hello {
            versions,
            vm: vm.parse().unwrap(),
            machine: Machine { vcpus, traits, ..machine() },
        })),
        any_register().prop_map(|register| Frame::ToBackup(ToBackup::Membership(register))),
        any_register().prop_map(|register| Frame::Answer(Answer::Outcome(Outcome::Set(register)))),
        (any::<u64>(), prop::collection::vec(any::<u32>(), 0..1024)).prop_map(|(epoch, chunks)| {
            Frame::ToPrimary(ToPrimary::Nack { epoch: Epoch::new(epoch), chunks })
        }),
        ".{0,300}".prop_map(|reason| Frame::Refusal(Refusal::Unready { reason })),
        (name(), any_register()).prop_map(|(vm, register)| {
            let vm = vm.parse().unwrap();
            Frame::Ask(Ask::Execute(
                vm,
                request(Operation::Promote { image: IMAGE }, Some(register)),
            ))
        }),
        any::<(u64, u64)>()
            .prop_map(|(pong, steps)| Frame::ToPrimary(ToPrimary::Heartbeat { pong, steps })),
    ]
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were(term: u64, frame in any_frame()) {
        let bytes = wire::encode(Term::new(term), &frame).unwrap();
        proptest::prop_assert_eq!(wire::decode(&bytes), Ok((Term::new(term), frame)));
    }

    #[test]
    fn damaged_frames_never_panic(
        frame in any_frame(),
        at: prop::sample::Index,
        bit in 0_u8..8,
        cut: prop::sample::Index,
    ) {
        let mut bytes = wire::encode(TERM, &frame).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = wire::decode(&bytes);
        let _ = wire::decode(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn any_body_under_any_kind_has_one_spelling_or_is_refused(
        kind in prop::sample::select(Kind::ALL),
        body in prop::collection::vec(prop_oneof![0_u8..4, any::<u8>()], 0..200),
    ) {
        let chunk = (kind == Kind::Chunk).then_some(ChunkId { epoch: Epoch::new(1), index: 2 });
        let header = Header { kind, body_bytes: body.len() as u32, term: TERM, chunk };
        let bytes = [&header.encode()[..], &body].concat();
        if let Ok((term, frame)) = wire::decode(&bytes) {
            proptest::prop_assert_eq!(wire::encode(term, &frame).unwrap(), bytes);
        }
    }

    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
        let _ = wire::decode(&bytes);
    }
}
