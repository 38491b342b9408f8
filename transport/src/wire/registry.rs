//! What nodes ask of the arbiter and what it answers.

use std::collections::BTreeMap;

use arbiter::{
    ImageId, NodeId, Operation, Outcome, Record, Register, Request, Stamp, StoreId, Term, VmId,
};

use super::{
    Kind, WireError,
    octets::{Reader, TEXT_BYTES_MAX, Writer},
};

/// Most backups in a register on the wire.
pub const MEMBERS_MAX: usize = arbiter::IN_SYNC_MAX;
/// Most records in one [`Answer::Records`].
pub const LIST_RECORDS_MAX: usize = 128;

/// To the arbiter; one per stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The record of a VM.
    Load(VmId),
    /// A compare-and-set on a VM's register.
    Execute(VmId, Request),
    /// The VMs after this one, in the order of their ids; `None`: from the
    /// first.
    List(Option<VmId>),
    /// Which registers the arbiter has.
    Identify,
}

/// From the arbiter; one per stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The record, or that there is none.
    Record(Option<Record>),
    /// How the compare-and-set ended.
    Outcome(Outcome),
    /// Up to [`LIST_RECORDS_MAX`] VMs.
    Records {
        /// In the order of their ids.
        records: Vec<(VmId, Record)>,
        /// Whether there are more.
        more: bool,
    },
    /// Nothing happened, and never will: why, in words for an operator.
    Denied(String),
    /// The store failed, and what was asked may or may not have happened: why,
    /// in words for an operator.
    Failed(String),
    /// The store cannot be asked now, and nothing happened: why, in words for
    /// an operator.
    Unavailable(String),
    /// Which registers the arbiter has.
    Registers(StoreId),
}

pub(super) fn ask_kind(ask: &Ask) -> Kind {
    match ask {
        Ask::Load(_) => Kind::Load,
        Ask::Execute(..) => Kind::Execute,
        Ask::List(_) => Kind::List,
        Ask::Identify => Kind::Identify,
    }
}

pub(super) fn write_ask(writer: &mut Writer, ask: &Ask) -> Result<(), WireError> {
    match ask {
        Ask::Load(vm) => writer.id(vm.as_str()),
        Ask::Execute(vm, request) => {
            writer.id(vm.as_str());
            write_request(writer, request)?;
        }
        Ask::List(after) => {
            writer.flag(after.is_some());
            if let Some(vm) = after {
                writer.id(vm.as_str());
            }
        }
        Ask::Identify => {}
    }
    Ok(())
}

pub(super) fn read_ask(kind: Kind, reader: &mut Reader<'_>) -> Result<Ask, WireError> {
    match kind {
        Kind::Load => reader.id().map(Ask::Load),
        Kind::Execute => Ok(Ask::Execute(reader.id()?, read_request(reader)?)),
        Kind::List => Ok(Ask::List(if reader.flag()? { Some(reader.id()?) } else { None })),
        Kind::Identify => Ok(Ask::Identify),
        other => Err(WireError::Unexpected(other)),
    }
}

pub(super) fn answer_kind(answer: &Answer) -> Kind {
    match answer {
        Answer::Record(_) => Kind::Record,
        Answer::Outcome(_) => Kind::Outcome,
        Answer::Records { .. } => Kind::Records,
        Answer::Denied(_) => Kind::Denied,
        Answer::Failed(_) => Kind::Failed,
        Answer::Unavailable(_) => Kind::Unavailable,
        Answer::Registers(_) => Kind::Registers,
    }
}

pub(super) fn write_answer(writer: &mut Writer, answer: &Answer) -> Result<(), WireError> {
    match answer {
        Answer::Record(record) => {
            writer.flag(record.is_some());
            record.as_ref().map_or(Ok(()), |record| write_record(writer, record))
        }
        Answer::Outcome(Outcome::Set(register)) => {
            writer.u8(1);
            write_register(writer, register)
        }
        Answer::Outcome(Outcome::Mismatch(register)) => {
            writer.u8(2);
            write_optional_register(writer, register.as_ref())
        }
        Answer::Records { records, more } => {
            writer.flag(*more);
            writer.count("records in an answer", records.len(), LIST_RECORDS_MAX)?;
            records.iter().try_for_each(|(vm, record)| {
                writer.id(vm.as_str());
                write_record(writer, record)
            })
        }
        Answer::Denied(words) | Answer::Failed(words) | Answer::Unavailable(words) => {
            writer.words(words);
            Ok(())
        }
        Answer::Registers(id) => {
            writer.flag(*id != StoreId::Own);
            if let StoreId::Shared(number) = id {
                writer.u64(*number);
            }
            Ok(())
        }
    }
}

pub(super) fn read_answer(kind: Kind, reader: &mut Reader<'_>) -> Result<Answer, WireError> {
    match kind {
        Kind::Record => {
            Ok(Answer::Record(if reader.flag()? { Some(read_record(reader)?) } else { None }))
        }
        Kind::Outcome => match reader.u8()? {
            1 => Ok(Answer::Outcome(Outcome::Set(read_register(reader)?))),
            2 => Ok(Answer::Outcome(Outcome::Mismatch(read_optional_register(reader)?))),
            _ => Err(WireError::Value("an unknown outcome")),
        },
        Kind::Records => {
            let more = reader.flag()?;
            let mut records: Vec<(VmId, Record)> = Vec::new();
            for _ in 0..reader.count(LIST_RECORDS_MAX)? {
                let vm = reader.id()?;
                if records.last().is_some_and(|(last, _)| *last >= vm) {
                    return Err(WireError::Value("VMs that do not rise by name"));
                }
                records.push((vm, read_record(reader)?));
            }
            Ok(Answer::Records { records, more })
        }
        Kind::Denied => Ok(Answer::Denied(reader.text(TEXT_BYTES_MAX)?)),
        Kind::Failed => Ok(Answer::Failed(reader.text(TEXT_BYTES_MAX)?)),
        Kind::Unavailable => Ok(Answer::Unavailable(reader.text(TEXT_BYTES_MAX)?)),
        Kind::Registers => Ok(Answer::Registers(if reader.flag()? {
            StoreId::Shared(reader.u64()?)
        } else {
            StoreId::Own
        })),
        other => Err(WireError::Unexpected(other)),
    }
}

pub(super) fn write_register(writer: &mut Writer, register: &Register) -> Result<(), WireError> {
    writer.u64(register.term.get());
    writer.id(register.primary.as_str());
    writer.count("backups in sync", register.in_sync.len(), MEMBERS_MAX)?;
    for (node, image) in &register.in_sync {
        writer.id(node.as_str());
        writer.u64(image.get());
    }
    Ok(())
}

pub(super) fn read_register(reader: &mut Reader<'_>) -> Result<Register, WireError> {
    let term = Term::new(reader.u64()?);
    let primary = reader.id()?;
    let mut in_sync = BTreeMap::new();
    for _ in 0..reader.count(MEMBERS_MAX)? {
        let node: NodeId = reader.id()?;
        if in_sync.last_key_value().is_some_and(|(last, _)| *last >= node) {
            return Err(WireError::Value("backups that do not rise by name"));
        }
        in_sync.insert(node, ImageId::new(reader.u64()?));
    }
    Ok(Register { term, primary, in_sync })
}

fn write_optional_register(
    writer: &mut Writer,
    register: Option<&Register>,
) -> Result<(), WireError> {
    writer.flag(register.is_some());
    register.map_or(Ok(()), |register| write_register(writer, register))
}

fn read_optional_register(reader: &mut Reader<'_>) -> Result<Option<Register>, WireError> {
    if reader.flag()? { read_register(reader).map(Some) } else { Ok(None) }
}

fn write_record(writer: &mut Writer, record: &Record) -> Result<(), WireError> {
    writer.u64(record.stamp.get());
    write_register(writer, &record.register)
}

fn read_record(reader: &mut Reader<'_>) -> Result<Record, WireError> {
    let stamp = Stamp::new(reader.u64()?);
    Ok(Record { register: read_register(reader)?, stamp })
}

fn write_request(writer: &mut Writer, request: &Request) -> Result<(), WireError> {
    writer.u64(request.stamp.get());
    writer.id(request.caller.as_str());
    let (code, node, image) = match &request.operation {
        Operation::Create => (1, None, None),
        Operation::Restart => (2, None, None),
        Operation::Admit { backup, image } => (3, Some(backup), Some(image)),
        Operation::Drop { backup } => (4, Some(backup), None),
        Operation::Promote { image } => (5, None, Some(image)),
        Operation::Switchover { successor, stands_by: None } => (6, Some(successor), None),
        Operation::Switchover { successor, stands_by: Some(image) } => {
            (7, Some(successor), Some(image))
        }
    };
    writer.u8(code);
    if let Some(node) = node {
        writer.id(node.as_str());
    }
    if let Some(image) = image {
        writer.u64(image.get());
    }
    write_optional_register(writer, request.expected.as_ref())
}

fn read_request(reader: &mut Reader<'_>) -> Result<Request, WireError> {
    let stamp = Stamp::new(reader.u64()?);
    let caller = reader.id()?;
    let operation = match reader.u8()? {
        1 => Operation::Create,
        2 => Operation::Restart,
        3 => Operation::Admit { backup: reader.id()?, image: ImageId::new(reader.u64()?) },
        4 => Operation::Drop { backup: reader.id()? },
        5 => Operation::Promote { image: ImageId::new(reader.u64()?) },
        6 => Operation::Switchover { successor: reader.id()?, stands_by: None },
        7 => Operation::Switchover {
            successor: reader.id()?,
            stands_by: Some(ImageId::new(reader.u64()?)),
        },
        _ => return Err(WireError::Value("an unknown operation")),
    };
    Ok(Request { caller, expected: read_optional_register(reader)?, operation, stamp })
}
