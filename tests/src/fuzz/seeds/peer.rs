//! What peers send: frames, requests to the arbiter, chunks, sections.

use arbiter::{
    ImageId, NodeId, Operation, Outcome, Record, Register, Request, Stamp, StoreId, Term, VmId,
};
use base64::prelude::{BASE64_STANDARD, Engine};
use checkpoint::{
    Epoch, MemoryLayout, PAGE_BYTES, PageNumber, PageRun, Section, Sections,
    chunk::{
        Chunk, ChunkId, ChunkKind, Compression, DECODED_BYTES_MAX, Encoder, Encoding, Places,
        SectionEncoder,
    },
    delta,
    history::History,
    message::{Close, HeldImage, Hello, Machine, Refusal, ToBackup, ToPrimary, Trait, Welcome},
    output::{Channel, Output},
};
use transport::{
    identity::pki,
    wire::{self, Answer, Ask, Frame},
};

use super::{Add, counted};

const TERM: Term = Term::new(7);
const EPOCH: Epoch = Epoch::new(4);
const IMAGE: ImageId = ImageId::new(5);
const ID: ChunkId = ChunkId { epoch: EPOCH, index: 5 };

fn node(name: &str) -> NodeId {
    name.parse().expect("a name")
}

fn vm() -> VmId {
    "vm".parse().expect("a name")
}

fn register(members: &[&str]) -> Register {
    let in_sync = members.iter().map(|name| (node(name), IMAGE)).collect();
    Register { term: TERM, primary: node("a"), in_sync }
}

fn machine() -> Machine {
    let run = |first, count| PageRun { first: PageNumber::new(first), count };
    let layout = MemoryLayout::new(vec![run(0, 160), run(256, 64)]).expect("rising and apart");
    let words = |words: &str| words.split(' ').map(str::to_owned).collect();
    let traits = [
        ("cpu features", Trait::Words(words("avx fpu sse2"))),
        ("devices", Trait::Text("virtio-net at 0xd0000000:5".into())),
        ("msrs", Trait::Needs(words("0x10 0x1b"))),
        ("tsc", Trait::Number { value: 5, least: 2, most: 8 }),
    ];
    let traits = traits.map(|(name, value)| (name.to_owned(), value)).into();
    Machine { layout, vcpus: 2, traits }
}

pub(super) fn frames(add: &mut Add<'_>) {
    let hello = Hello { versions: vec!["romulus/3".into()], vm: vm(), machine: machine() };
    let welcome = Welcome {
        version: "romulus/3".into(),
        image: Some(HeldImage { id: IMAGE, committed: EPOCH }),
        staging_bytes_max: 1 << 28,
    };
    let close =
        Close { epoch: EPOCH, seed_chunks: Some(3), chunks: 4, pages: 5, digest: [0xcc; 32] };
    let chunk = Encoder::new(Compression::Off).pages(ID, &[], Vec::new());
    let record = Record { register: register(&["b"]), stamp: Stamp::new(9) };
    let frames = [
        ("hello", Frame::Hello(hello)),
        ("welcome", Frame::Welcome(welcome)),
        ("refusal", Frame::Refusal(Refusal::Version { spoken: vec!["romulus/3".into()] })),
        ("stale", Frame::Refusal(Refusal::Stale { current: TERM })),
        ("heartbeat", Frame::ToBackup(ToBackup::Heartbeat { ping: 2 })),
        ("begin-seed", Frame::ToBackup(ToBackup::BeginSeed { image: IMAGE })),
        ("close", Frame::ToBackup(ToBackup::Close(close))),
        ("membership", Frame::ToBackup(ToBackup::Membership(register(&["b", "c"])))),
        (
            "hand-over",
            Frame::ToBackup(ToBackup::HandOver { epoch: EPOCH, register: register(&[]) }),
        ),
        ("verify", Frame::ToBackup(ToBackup::Verify { epoch: EPOCH })),
        ("farewell", Frame::ToBackup(ToBackup::Farewell { reason: "off".into() })),
        ("pong", Frame::ToPrimary(ToPrimary::Heartbeat { pong: 2, steps: 9 })),
        ("seed-ack", Frame::ToPrimary(ToPrimary::SeedAck { chunks: 3 })),
        ("ack", Frame::ToPrimary(ToPrimary::Ack { committed: EPOCH, applied: EPOCH })),
        ("nack", Frame::ToPrimary(ToPrimary::Nack { epoch: EPOCH, chunks: vec![1, 9] })),
        ("verified", Frame::ToPrimary(ToPrimary::Verified { epoch: EPOCH, digest: [3; 32] })),
        ("chunk", Frame::Chunk(chunk)),
        ("load", Frame::Ask(Ask::Load(vm()))),
        ("list", Frame::Ask(Ask::List(Some(vm())))),
        ("record", Frame::Answer(wire::Answer::Record(Some(record.clone())))),
        ("set", Frame::Answer(Answer::Outcome(Outcome::Set(register(&["b"]))))),
        ("mismatch", Frame::Answer(Answer::Outcome(Outcome::Mismatch(None)))),
        ("records", Frame::Answer(Answer::Records { records: vec![(vm(), record)], more: true })),
        ("unavailable", Frame::Answer(Answer::Unavailable("later".into()))),
        ("registers", Frame::Answer(Answer::Registers(StoreId::Shared(3)))),
        ("identify", Frame::Ask(Ask::Identify)),
        ("denied", Frame::Answer(Answer::Denied("no".into()))),
        ("failed", Frame::Answer(Answer::Failed("disk".into()))),
    ];
    for (name, frame) in frames {
        add("frame", name, spelled(&frame));
    }
}

fn spelled(frame: &Frame) -> Vec<u8> {
    wire::encode(TERM, frame).expect("within all limits")
}

pub(super) fn requests(add: &mut Add<'_>) {
    let create = Request {
        caller: node("a"),
        expected: None,
        operation: Operation::Create,
        stamp: Stamp::new(1),
    };
    let mut life = vec![create.clone()];
    let admit = Operation::Admit { backup: node("b"), image: IMAGE };
    let operations = [
        ("a", admit.clone()),
        ("b", Operation::Promote { image: IMAGE }),
        ("b", Operation::Restart),
        ("b", admit),
    ];
    for (stamp, (caller, operation)) in (2..).zip(operations) {
        let expected = life.last().and_then(|last| last.target().ok());
        let caller = node(caller);
        life.push(Request { caller, expected, operation, stamp: Stamp::new(stamp) });
    }
    let executes = life.into_iter().map(|request| Ask::Execute(vm(), request));
    let asks = executes.chain([Ask::Load(vm()), Ask::List(None)]);
    add("register", "life", asks.flat_map(|ask| spelled(&Frame::Ask(ask))).collect());
    let again = [create.clone(), create];
    let again = again.map(|request| spelled(&Frame::Ask(Ask::Execute(vm(), request))));
    add("register", "asked-again", again.concat());
    let record = Record { register: register(&["b", "c"]), stamp: Stamp::new(7) };
    add("etcd_value", "record", etcd::spelling::spell(&record));
}

/// A chunk as the target `chunk` reads it.
fn script(chunk: &Chunk) -> Vec<u8> {
    let mut bytes = vec![chunk.kind.code(), chunk.encoding.code()];
    bytes.extend(chunk.decoded_bytes.to_le_bytes());
    bytes.extend(counted(&chunk.body.clone().into_contiguous()));
    bytes
}

pub(super) fn chunks(add: &mut Add<'_>) {
    let runs = [PageRun { first: PageNumber::new(3), count: 2 }];
    let mut block = vec![0; 2 * PAGE_BYTES];
    block[..PAGE_BYTES].fill(0x5a);
    let mut zstd = Encoder::new(Compression::Zstd { level: 1 });
    add("chunk", "pages", script(&zstd.pages(ID, &runs, block.clone())));
    let mut raw = Encoder::new(Compression::Off);
    let mut history = History::new(400, 1 << 20);
    let mut deltas = Vec::new();
    for word in 0..3 {
        block[8 * word] = word as u8;
        let mut copy = block.clone();
        let scan = zstd.scan(&runs, &mut copy, &Places::default(), Some(&mut history));
        deltas.extend(script(&zstd.finish(ID, scan, copy)));
    }
    add("chunk", "deltas", deltas);

    let section = |fill| Section { name: "vcpu.00.regs".into(), version: 1, bytes: vec![fill; 64] };
    let mut encoder = SectionEncoder::default();
    let mut state = Vec::new();
    for fill in [1, 1, 2] {
        let mut sections = vec![section(1), Section { name: "power".into(), ..section(9) }];
        sections[1].bytes[0] = fill;
        let sections = Sections::new(sections).expect("two names");
        state.extend(script(&encoder.chunk(ID, &sections, false, &mut raw)));
    }
    add("chunk", "state", state);
    let output = |channel, payload: &[u8]| Output { channel, payload: payload.into() };
    let outputs = [output(Channel::Console, b"login: "), output(Channel::Network(0), &[0xff; 60])];
    add("chunk", "outputs", script(&Chunk::of_outputs(ID, &outputs, &mut raw).0));
    bombs(add);
}

/// Little on the wire, as much as a chunk may have behind it.
fn bombs(add: &mut Add<'_>) {
    // A whole number of outputs that say nothing.
    let zeros = vec![0; DECODED_BYTES_MAX / 6 * 6];
    let body = zstd::bulk::compress(&zeros, 19).expect("it compresses in memory");
    let kinds = [
        ("pages", ChunkKind::Pages),
        ("sections", ChunkKind::Sections),
        ("outputs", ChunkKind::Outputs),
        ("sections-delta", ChunkKind::SectionsDelta),
    ];
    for (name, kind) in kinds {
        let decoded_bytes = zeros.len() as u32;
        let (encoding, body) = (Encoding::Zstd, body.clone().into());
        let chunk = Chunk { id: ID, kind, encoding, decoded_bytes, body, digest: [0; 32] };
        add("chunk", &format!("bomb-of-{name}"), script(&chunk));
    }
}

pub(super) fn deltas(add: &mut Add<'_>) {
    let old: Vec<u8> = (0..100).collect();
    let mut new = old.clone();
    for at in [3, 40, 41, 98] {
        new[at] ^= 0xff;
    }
    let mut delta = Vec::new();
    delta::compare(&old, &new, usize::MAX, &mut delta);
    // The check is made by the target.
    add("delta", "words", [counted(&old), delta.split_off(8)].concat());
    add("delta", "nothing", [counted(&old[..16]), Vec::new()].concat());
}

pub(super) fn sections(add: &mut Add<'_>) {
    let section = |name: &str, len| Section { name: name.into(), version: 1, bytes: vec![7; len] };
    let sections = vec![section("power", 2), section("serial", 40), section("vm.clock", 28)];
    add("sections", "three", Sections::new(sections).expect("three names").encode());
    add("sections", "none", Sections::default().encode());
}

pub(super) fn certificates(add: &mut Add<'_>) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let authority = pki::create_authority(folder.path(), 7, false).expect("a folder of our own");
    let of_node = pki::issue(folder.path(), &node("node-a"), 7, false).expect("its authority");
    for (name, files) in [("authority", authority), ("node", of_node)] {
        let pem = std::fs::read_to_string(files.certificate).expect("it was just written");
        let lines = pem.lines().filter(|line| !line.starts_with('-'));
        let der = BASE64_STANDARD.decode(lines.collect::<String>()).expect("a PEM file");
        add("certificate", name, der);
    }
}

pub(super) fn probe(add: &mut Add<'_>) {
    use romulus_probe::Request;
    add("probe", "stats", Request::Stats.encode().to_vec());
    let line = "vcpus=2 ip=10.0.0.2/24 fill=1 dirty=sparse:10 virtio_mmio.device=4K@0xd0000000:5";
    add("probe", "command-line", line.as_bytes().to_vec());
    let hostile = "probe.attack=seed:7,rounds:60,kinds:chains+ports+net+end";
    add("probe", "attack", hostile.as_bytes().to_vec());
}
