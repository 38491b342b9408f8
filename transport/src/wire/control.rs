//! What goes over the control stream once a session stands.

use arbiter::ImageId;
use checkpoint::{
    Epoch,
    message::{Close, NACK_CHUNKS_MAX, ToBackup, ToPrimary},
};

use super::{
    Kind, WireError,
    octets::{Reader, TEXT_BYTES_MAX, Writer},
    registry::{read_register, write_register},
};

pub(super) fn to_backup_kind(message: &ToBackup) -> Kind {
    match message {
        ToBackup::Heartbeat { .. } => Kind::PrimaryHeartbeat,
        ToBackup::BeginSeed { .. } => Kind::BeginSeed,
        ToBackup::Close(_) => Kind::Close,
        ToBackup::Membership(_) => Kind::Membership,
        ToBackup::HandOver { .. } => Kind::HandOver,
        ToBackup::Verify { .. } => Kind::Verify,
        ToBackup::Farewell { .. } => Kind::Farewell,
    }
}

pub(super) fn write_to_backup(writer: &mut Writer, message: &ToBackup) -> Result<(), WireError> {
    match message {
        ToBackup::BeginSeed { image } => {
            writer.u64(image.get());
            Ok(())
        }
        ToBackup::Heartbeat { ping: number } => {
            writer.u64(*number);
            Ok(())
        }
        ToBackup::Verify { epoch } => {
            writer.u64(epoch.get());
            Ok(())
        }
        ToBackup::Close(close) => {
            write_close(writer, close);
            Ok(())
        }
        ToBackup::Membership(register) => write_register(writer, register),
        ToBackup::HandOver { epoch, register } => {
            writer.u64(epoch.get());
            write_register(writer, register)
        }
        ToBackup::Farewell { reason } => {
            writer.words(reason);
            Ok(())
        }
    }
}

pub(super) fn read_to_backup(kind: Kind, reader: &mut Reader<'_>) -> Result<ToBackup, WireError> {
    match kind {
        Kind::PrimaryHeartbeat => Ok(ToBackup::Heartbeat { ping: reader.u64()? }),
        Kind::BeginSeed => Ok(ToBackup::BeginSeed { image: ImageId::new(reader.u64()?) }),
        Kind::Close => read_close(reader).map(ToBackup::Close),
        Kind::Membership => read_register(reader).map(ToBackup::Membership),
        Kind::HandOver => {
            let epoch = Epoch::new(reader.u64()?);
            Ok(ToBackup::HandOver { epoch, register: read_register(reader)? })
        }
        Kind::Verify => Ok(ToBackup::Verify { epoch: Epoch::new(reader.u64()?) }),
        Kind::Farewell => Ok(ToBackup::Farewell { reason: reader.text(TEXT_BYTES_MAX)? }),
        other => Err(WireError::Unexpected(other)),
    }
}

pub(super) fn to_primary_kind(message: &ToPrimary) -> Kind {
    match message {
        ToPrimary::Heartbeat { .. } => Kind::BackupHeartbeat,
        ToPrimary::SeedAck { .. } => Kind::SeedAck,
        ToPrimary::Ack { .. } => Kind::Ack,
        ToPrimary::Nack { .. } => Kind::Nack,
        ToPrimary::Verified { .. } => Kind::Verified,
    }
}

pub(super) fn write_to_primary(writer: &mut Writer, message: &ToPrimary) -> Result<(), WireError> {
    match message {
        ToPrimary::Heartbeat { pong, steps } => {
            writer.u64(*pong);
            writer.u64(*steps);
        }
        ToPrimary::SeedAck { chunks } => writer.u32(*chunks),
        ToPrimary::Ack { committed, applied } => {
            writer.u64(committed.get());
            writer.u64(applied.get());
        }
        ToPrimary::Nack { epoch, chunks } => {
            writer.u64(epoch.get());
            writer.count("chunks to send again", chunks.len(), NACK_CHUNKS_MAX)?;
            for chunk in chunks {
                writer.u32(*chunk);
            }
        }
        ToPrimary::Verified { epoch, digest } => {
            writer.u64(epoch.get());
            writer.slice(digest);
        }
    }
    Ok(())
}

pub(super) fn read_to_primary(kind: Kind, reader: &mut Reader<'_>) -> Result<ToPrimary, WireError> {
    match kind {
        Kind::BackupHeartbeat => {
            let pong = reader.u64()?;
            Ok(ToPrimary::Heartbeat { pong, steps: reader.u64()? })
        }
        Kind::SeedAck => Ok(ToPrimary::SeedAck { chunks: reader.u32()? }),
        Kind::Ack => {
            let committed = Epoch::new(reader.u64()?);
            Ok(ToPrimary::Ack { committed, applied: Epoch::new(reader.u64()?) })
        }
        Kind::Nack => {
            let epoch = Epoch::new(reader.u64()?);
            let count = reader.count(NACK_CHUNKS_MAX)?;
            let chunks = (0..count).map(|_| reader.u32()).collect::<Result<_, _>>()?;
            Ok(ToPrimary::Nack { epoch, chunks })
        }
        Kind::Verified => {
            let epoch = Epoch::new(reader.u64()?);
            Ok(ToPrimary::Verified { epoch, digest: reader.array()? })
        }
        other => Err(WireError::Unexpected(other)),
    }
}

fn write_close(writer: &mut Writer, close: &Close) {
    writer.u64(close.epoch.get());
    writer.flag(close.seed_chunks.is_some());
    writer.u32(close.seed_chunks.unwrap_or(0));
    writer.u32(close.chunks);
    writer.u64(close.pages);
    writer.slice(&close.digest);
}

fn read_close(reader: &mut Reader<'_>) -> Result<Close, WireError> {
    let epoch = Epoch::new(reader.u64()?);
    let seed_chunks = match (reader.flag()?, reader.u32()?) {
        (true, chunks) => Some(chunks),
        (false, 0) => None,
        (false, _) => return Err(WireError::Reserved),
    };
    Ok(Close {
        epoch,
        seed_chunks,
        chunks: reader.u32()?,
        pages: reader.u64()?,
        digest: reader.array()?,
    })
}
