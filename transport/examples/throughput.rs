//! Chunks per second over loopback, both ends in this process.
//!
//! `cargo run --release -p romulus-transport --example throughput -- [mtu] [streams] [MiB]`

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use arbiter::{NodeId, Term};
use checkpoint::{
    Epoch, MemoryLayout, PageNumber, PageRun,
    chunk::{Chunk, ChunkId, ChunkKind, Encoding},
    message::{Hello, Machine, Welcome},
};
use romulus_transport::{Endpoint, Identity, Incoming, Options, identity::pki, wire};

const TERM: Term = Term::FIRST;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let given: Vec<u32> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let of = |index: usize, default| given.get(index).copied().unwrap_or(default);
    let (mtu, streams, mib) = (of(0, 65000), of(1, 4), of(2, 4096));
    let options = Options {
        mtu_bytes_max: mtu.try_into()?,
        data_streams: streams as usize,
        ..Options::default()
    };
    let dir = tempfile::tempdir()?;
    let ca = pki::create_authority(dir.path(), 1, false)?;
    let endpoint = |name: &str| -> Result<Endpoint> {
        let files = pki::issue(dir.path(), &name.parse()?, 1, false)?;
        let identity = Identity::load(&ca.certificate, &files.certificate, &files.key)?;
        Ok(Endpoint::bind("127.0.0.1:0".parse()?, &identity, &options)?)
    };
    let (a, b) = (endpoint("a")?, endpoint("b")?);
    let backup = b.local_address();
    let receiving = tokio::spawn(async move {
        let knock = b.accept().await.context("closed")??;
        let version = wire::VERSIONS[0].to_owned();
        let mut session =
            knock.welcome(TERM, Welcome { version, image: None, staging_bytes_max: 0 })?;
        let mut received = 0;
        while received < mib {
            if let Incoming::Chunk(..) = session.receiver.next().await? {
                received += 1;
            }
        }
        anyhow::Ok(())
    });
    let peer: NodeId = "b".parse()?;
    let (_, primary) = a.dial(backup, &peer, TERM, &hello()?).await?;
    let begun = Instant::now();
    for index in 0..mib {
        primary.data.send(TERM, Arc::new(sample(index))).await?;
    }
    receiving.await??;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{:.2} GB/s, mtu {mtu}, {streams} streams", f64::from(mib) * 1.048_576e-3 / seconds);
    println!("{:?}", primary.link.stats());
    Ok(())
}

/// 1 MiB, whose making costs little and whose content does not matter.
fn sample(index: u32) -> Chunk {
    Chunk {
        id: ChunkId { epoch: Epoch::FIRST, index },
        kind: ChunkKind::Pages,
        encoding: Encoding::Raw,
        decoded_bytes: 1 << 20,
        body: vec![0x5a; 1 << 20].into(),
        digest: [0; 32],
    }
}

fn hello() -> Result<Hello> {
    let layout = MemoryLayout::new(vec![PageRun { first: PageNumber::new(0), count: 1 }])?;
    Ok(Hello {
        versions: vec![wire::VERSIONS[0].to_owned()],
        vm: "vm".parse()?,
        machine: Machine { layout, vcpus: 1, traits: [].into() },
    })
}
