//! The answers of the probe service; see [`crate::message`] for what all messages share.

use crate::VCPUS_MAX;
use crate::message::{
    ANSWER_BIT, DecodeError, KIND_ASK, KIND_PATTERN, KIND_STATS, KIND_VERIFY, Message, VerifyScope,
    get_pattern, header, in_range, put_pattern,
};
use crate::pattern::Pattern;
use crate::wire::{Reader, Writer};

/// What became of an ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AskStatus {
    /// The lane advanced (or was opened): the answer is new.
    Advanced = 0,
    /// The same request as before; the same answer again.
    Repeat = 1,
    /// The request is not the next one: the guest does not know some before it.
    Gap = 2,
    /// An older request, whose answer is no longer kept.
    Stale = 3,
    /// The guest holds another request under this number.
    Conflict = 4,
    /// Not a lane of this guest.
    NoLane = 5,
}

impl AskStatus {
    const fn from_u8(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Advanced),
            1 => Some(Self::Repeat),
            2 => Some(Self::Gap),
            3 => Some(Self::Stale),
            4 => Some(Self::Conflict),
            5 => Some(Self::NoLane),
            _ => None,
        }
    }
}

/// Counters of one vCPU; both only rise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuCounters {
    /// Steps of its work loop.
    pub progress: u64,
    /// Timer interrupts taken.
    pub ticks: u64,
}

/// The answer to an ask. With a status other than `Advanced` and `Repeat`, `seq` and `digest` say
/// what the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskAnswer {
    /// What became of it.
    pub status: AskStatus,
    /// Client id, as asked.
    pub client: u32,
    /// vCPUs that run; the first so many of `vcpu` count.
    pub vcpus: u32,
    /// The request's number.
    pub asked_seq: u64,
    /// The request's nonce.
    pub nonce: u64,
    /// The last number that the lane holds.
    pub seq: u64,
    /// History digest after `seq`.
    pub digest: u64,
    /// Lane advances of all clients since boot.
    pub answers: u64,
    /// Pages found not to hold what was written.
    pub corrupt_pages: u64,
    /// Address of the first of them.
    pub first_bad: u64,
    /// Time-stamp counter of vCPU 0.
    pub tsc: u64,
    /// kvm-clock in ns, 0 where there is none.
    pub kvm_clock_ns: u64,
    /// Per-vCPU counters.
    pub vcpu: [VcpuCounters; VCPUS_MAX],
}

/// The answer to a pattern request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatternAnswer {
    /// The pattern that runs now (pages bounded by the capacity).
    pub pattern: Pattern,
    /// Pages reserved for the working set.
    pub pages_max: u64,
    /// Patterns set since boot.
    pub changes: u64,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VerifyState {
    /// None was started.
    Idle = 0,
    /// Going on.
    Running = 1,
    /// Finished; the counts are final.
    Done = 2,
}

/// The answer to a verify request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyAnswer {
    /// How far.
    pub state: VerifyState,
    /// What it covers.
    pub scope: VerifyScope,
    /// The run's name.
    pub run: u64,
    /// Pages checked so far.
    pub checked_pages: u64,
    /// Of these, fill pages.
    pub fill_pages: u64,
    /// Pages that hold something else than they should.
    pub bad_pages: u64,
    /// Address of the first bad page known, or 0.
    pub first_bad: u64,
    /// Digest of the working set: (page, version, content) of all its pages, order-free.
    pub digest: u64,
}

/// Counters of the whole guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsAnswer {
    /// vCPUs that run.
    pub vcpus: u32,
    /// RAM in MiB.
    pub memory_mib: u32,
    /// Pages dirtied by the pattern since boot.
    pub written_pages: u64,
    /// Pages in the fill area.
    pub fill_pages: u64,
    /// Of these, pages filled so far.
    pub filled_pages: u64,
    /// Pages found corrupt since boot.
    pub corrupt_pages: u64,
    /// Interrupts of the network device.
    pub net_interrupts: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Frames given to the device.
    pub tx_frames: u64,
    /// Frames dropped because every transmit buffer was held.
    pub tx_dropped: u64,
    /// Time-stamp counter of vCPU 0.
    pub tsc: u64,
    /// kvm-clock in ns, 0 where there is none.
    pub kvm_clock_ns: u64,
    /// Measured TSC rate.
    pub tsc_khz: u64,
    /// Per-vCPU counters.
    pub vcpu: [VcpuCounters; VCPUS_MAX],
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "short-lived, and the guest has no heap")]
pub enum Answer {
    /// To [`Request::Ask`].
    Ask(AskAnswer),
    /// To [`Request::PatternGet`] and [`Request::PatternSet`].
    Pattern(PatternAnswer),
    /// To [`Request::VerifyStart`] and [`Request::VerifyPoll`].
    Verify(VerifyAnswer),
    /// To [`Request::Stats`].
    Stats(StatsAnswer),
}

impl Answer {
    /// To bytes.
    pub fn encode(&self) -> Message {
        match self {
            Self::Ask(answer) => encode_ask(answer),
            Self::Pattern(answer) => Message::build(KIND_PATTERN | ANSWER_BIT, 0, |w| {
                put_pattern(w, 0, &answer.pattern);
                w.u64(answer.pages_max);
                w.u64(answer.changes);
            }),
            Self::Verify(answer) => encode_verify(answer),
            Self::Stats(answer) => encode_stats(answer),
        }
    }

    /// From bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let (kind, status) = header(&mut reader)?;
        let Some(kind) = kind.checked_sub(ANSWER_BIT) else {
            return Err(DecodeError::Kind { got: kind });
        };
        in_range(status == 0 || kind == KIND_ASK, "status")?;
        let answer = match kind {
            KIND_ASK => Self::Ask(decode_ask(&mut reader, status)?),
            KIND_PATTERN => {
                let (operation, pattern) = get_pattern(&mut reader)?;
                in_range(operation == 0, "operation")?;
                Self::Pattern(PatternAnswer {
                    pattern,
                    pages_max: reader.u64()?,
                    changes: reader.u64()?,
                })
            }
            KIND_VERIFY => Self::Verify(decode_verify(&mut reader)?),
            KIND_STATS => Self::Stats(decode_stats(&mut reader)?),
            got => {
                return Err(DecodeError::Kind { got: got | ANSWER_BIT });
            }
        };
        reader.finish()?;
        Ok(answer)
    }
}

fn encode_ask(a: &AskAnswer) -> Message {
    Message::build(KIND_ASK | ANSWER_BIT, a.status as u8, |w| {
        w.u32(a.client);
        w.u32(a.vcpus);
        for value in [
            a.asked_seq,
            a.nonce,
            a.seq,
            a.digest,
            a.answers,
            a.corrupt_pages,
            a.first_bad,
            a.tsc,
            a.kvm_clock_ns,
        ] {
            w.u64(value);
        }
        put_vcpus(w, &a.vcpu);
    })
}

fn decode_ask(r: &mut Reader<'_>, status: u8) -> Result<AskAnswer, DecodeError> {
    Ok(AskAnswer {
        status: AskStatus::from_u8(status).ok_or(DecodeError::Field("status"))?,
        client: r.u32()?,
        vcpus: get_vcpu_count(r)?,
        asked_seq: r.u64()?,
        nonce: r.u64()?,
        seq: r.u64()?,
        digest: r.u64()?,
        answers: r.u64()?,
        corrupt_pages: r.u64()?,
        first_bad: r.u64()?,
        tsc: r.u64()?,
        kvm_clock_ns: r.u64()?,
        vcpu: get_vcpus(r)?,
    })
}

fn encode_verify(a: &VerifyAnswer) -> Message {
    Message::build(KIND_VERIFY | ANSWER_BIT, 0, |w| {
        w.put(&[a.state as u8, a.scope.bits(), 0, 0, 0, 0, 0, 0]);
        for value in [a.run, a.checked_pages, a.fill_pages, a.bad_pages, a.first_bad, a.digest] {
            w.u64(value);
        }
    })
}

fn decode_verify(r: &mut Reader<'_>) -> Result<VerifyAnswer, DecodeError> {
    let [state, scope, reserved @ ..] = r.array::<8>()?;
    in_range(reserved == [0; 6], "reserved")?;
    Ok(VerifyAnswer {
        state: match state {
            0 => VerifyState::Idle,
            1 => VerifyState::Running,
            2 => VerifyState::Done,
            _ => return Err(DecodeError::Field("state")),
        },
        scope: VerifyScope::from_bits(scope).ok_or(DecodeError::Field("scope"))?,
        run: r.u64()?,
        checked_pages: r.u64()?,
        fill_pages: r.u64()?,
        bad_pages: r.u64()?,
        first_bad: r.u64()?,
        digest: r.u64()?,
    })
}

fn encode_stats(a: &StatsAnswer) -> Message {
    Message::build(KIND_STATS | ANSWER_BIT, 0, |w| {
        w.u32(a.vcpus);
        w.u32(a.memory_mib);
        for value in [
            a.written_pages,
            a.fill_pages,
            a.filled_pages,
            a.corrupt_pages,
            a.net_interrupts,
            a.rx_frames,
            a.tx_frames,
            a.tx_dropped,
            a.tsc,
            a.kvm_clock_ns,
            a.tsc_khz,
        ] {
            w.u64(value);
        }
        put_vcpus(w, &a.vcpu);
    })
}

fn decode_stats(r: &mut Reader<'_>) -> Result<StatsAnswer, DecodeError> {
    Ok(StatsAnswer {
        vcpus: get_vcpu_count(r)?,
        memory_mib: r.u32()?,
        written_pages: r.u64()?,
        fill_pages: r.u64()?,
        filled_pages: r.u64()?,
        corrupt_pages: r.u64()?,
        net_interrupts: r.u64()?,
        rx_frames: r.u64()?,
        tx_frames: r.u64()?,
        tx_dropped: r.u64()?,
        tsc: r.u64()?,
        kvm_clock_ns: r.u64()?,
        tsc_khz: r.u64()?,
        vcpu: get_vcpus(r)?,
    })
}

fn get_vcpu_count(r: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let vcpus = r.u32()?;
    in_range(vcpus as usize <= VCPUS_MAX, "vcpus")?;
    Ok(vcpus)
}

fn put_vcpus(w: &mut Writer<'_>, vcpus: &[VcpuCounters; VCPUS_MAX]) {
    for vcpu in vcpus {
        w.u64(vcpu.progress);
        w.u64(vcpu.ticks);
    }
}

fn get_vcpus(r: &mut Reader<'_>) -> Result<[VcpuCounters; VCPUS_MAX], DecodeError> {
    let mut vcpus = [VcpuCounters::default(); VCPUS_MAX];
    for vcpu in &mut vcpus {
        *vcpu = VcpuCounters { progress: r.u64()?, ticks: r.u64()? };
    }
    Ok(vcpus)
}
