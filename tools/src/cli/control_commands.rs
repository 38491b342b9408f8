//! Commands that ask a running daemon, and print what it answers.

use std::{
    future::Future,
    io::{self, Write},
    time::Duration,
};

use serde::Serialize;

use super::{
    args::{EventsArgs, FailoverArgs, ProtectArgs, ShutdownArgs, StatusArgs, UnprotectArgs, VmArg},
    failure::Failure,
    progress, render, target,
};
use crate::{
    control::{
        Accepted, AnyStatus, Client, ClientError, FailoverBody, ProtectBody, ShutdownBody,
        UnprotectBody,
    },
    daemon::ShellError,
    exit::Exit,
};

/// How long one question of `events --follow` waits for news.
const FOLLOW_WAIT: Duration = Duration::from_secs(25);
/// How often `shutdown --wait` looks whether the guest is off.
const OFF_POLL: Duration = Duration::from_millis(200);

pub(super) fn status(arguments: &StatusArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.target)?;
    let status = wait(client.any_status())??;
    print(json, &status, || match &status {
        AnyStatus::Node(status) => render::status(status),
        AnyStatus::Arbiter(status) => render::arbiter_status(status),
    })
}

pub(super) fn events(arguments: &EventsArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    wait(async {
        let mut after = arguments.after;
        let mut patience = Duration::ZERO;
        loop {
            let page = client.events(after, patience).await?;
            for event in &page.events {
                // One object a line: a stream has no end that could close a list.
                print(json, event, || render::event(event))?;
            }
            if !arguments.follow {
                return Ok(Exit::Done);
            }
            after = page.next_after;
            patience = FOLLOW_WAIT;
        }
    })?
}

pub(super) fn failover(arguments: &FailoverArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    let body = FailoverBody { to: arguments.to.clone(), take_over: arguments.take_over };
    accepted(json, &wait(client.failover(&body))??)
}

pub(super) fn shutdown(arguments: &ShutdownArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    let body = ShutdownBody { force: arguments.force };
    wait(async {
        let answer = client.shutdown(&body).await?;
        if let Some(seconds) = arguments.wait {
            let patience = Duration::from_secs(seconds);
            match tokio::time::timeout(patience, until_absent(&client)).await {
                Ok(gone) => gone?,
                Err(_) => return Err(Failure::StillRuns { seconds }),
            }
        }
        accepted(json, &answer)
    })?
}

/// A process whose guest is off ends, and its control socket with it.
async fn until_absent(client: &Client) -> Result<(), ClientError> {
    loop {
        match client.status().await {
            Err(ClientError::Absent { .. }) => return Ok(()),
            // It is ending.
            Ok(_) | Err(ClientError::Broken { .. } | ClientError::Silent { .. }) => {}
            Err(ClientError::Refused { status: 503, .. }) => {}
            Err(error) => return Err(error),
        }
        tokio::time::sleep(OFF_POLL).await;
    }
}

pub(super) fn unprotect(arguments: &UnprotectArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    let body = UnprotectBody { backup: arguments.backup.clone() };
    accepted(json, &wait(client.unprotect(&body))??)
}

pub(super) fn protect(arguments: &ProtectArgs, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm.vm)?;
    let body = ProtectBody { backup: arguments.backup.clone(), address: arguments.address };
    wait(begin_protection(&client, &body, arguments, json))?
}

async fn begin_protection(
    client: &Client,
    body: &ProtectBody,
    arguments: &ProtectArgs,
    json: bool,
) -> Result<Exit, Failure> {
    let answer = client.protect(body).await?;
    if arguments.no_wait {
        return accepted(json, &answer);
    }
    let status = progress::until_protected(client, arguments.backup.as_ref(), json).await?;
    print(json, &status, || render::status(&status))
}

pub(super) fn verify(arguments: &VmArg, json: bool) -> Result<Exit, Failure> {
    let client = target::client(&arguments.vm)?;
    let report = wait(client.verify())??;
    print(json, &report, || render::verification(&report))?;
    Ok(if report.equal { Exit::Done } else { Exit::Failed })
}

fn accepted(json: bool, answer: &Accepted) -> Result<Exit, Failure> {
    print(json, answer, || format!("{}\n", answer.message))
}

/// Writes `value` as one line of JSON, or its rendering for people.
pub(super) fn print(
    json: bool,
    value: &impl Serialize,
    human: impl FnOnce() -> String,
) -> Result<Exit, Failure> {
    let text = if json {
        let mut line = serde_json::to_string(value).map_err(io::Error::from)?;
        line.push('\n');
        line
    } else {
        human()
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Runs one conversation to its end.
pub(super) fn wait<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| ShellError::System { action: "start a runtime", source })?;
    Ok(runtime.block_on(work))
}
