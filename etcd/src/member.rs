//! One member of the cluster, and the two things that are asked of it.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse,
};
use tokio::{sync::Mutex, time::timeout};

use crate::{Settings, fault::MemberFault};

/// A value, or that there is none.
pub(crate) type Value = Option<Vec<u8>>;

/// A member by its URL. Keeps one connection.
pub(crate) struct Member {
    endpoint: String,
    options: ConnectOptions,
    timeout: Duration,
    connect_timeout: Duration,
    client: Mutex<Option<Client>>,
}

impl Member {
    pub(crate) fn new(endpoint: &str, settings: &Settings, options: ConnectOptions) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            options,
            timeout: settings.timeout,
            connect_timeout: settings.connect_timeout(),
            client: Mutex::new(None),
        }
    }

    /// What is in force under `key`, by consent of a majority.
    pub(crate) async fn read(&self, key: &str) -> Result<Value, MemberFault> {
        let mut client = self.client().await?;
        let got = self.within(client.get(key, None)).await?;
        Ok(got.kvs().first().map(|found| found.value().to_vec()))
    }

    /// At most `limit` keys from `start` up to, and without, `end`.
    pub(crate) async fn range(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
        limit: i64,
    ) -> Result<Vec<KeyValue>, MemberFault> {
        let mut client = self.client().await?;
        let options = GetOptions::new().with_range(end).with_limit(limit);
        let mut got = self.within(client.get(start, Some(options))).await?;
        Ok(got.take_kvs())
    }

    /// Puts `value` under `key` if that holds `expected`. `Err` of the inner
    /// result is what it holds instead; a fault leaves open what happened.
    pub(crate) async fn replace(
        &self,
        key: &str,
        expected: &Value,
        value: Vec<u8>,
    ) -> Result<Result<(), Value>, MemberFault> {
        let mut client = self.client().await?;
        let unchanged = match expected {
            Some(expected) => Compare::value(key, CompareOp::Equal, expected.clone()),
            None => Compare::create_revision(key, CompareOp::Equal, 0),
        };
        let transaction = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        let done = self.within(client.txn(transaction)).await?;
        if done.succeeded() {
            return Ok(Ok(()));
        }
        match done.op_responses().into_iter().next() {
            Some(TxnOpResponse::Get(got)) => {
                Ok(Err(got.kvs().first().map(|found| found.value().to_vec())))
            }
            Some(TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_))
            | None => Err(MemberFault::Refused {
                endpoint: self.endpoint.clone(),
                said: "it answered another transaction than it was asked".to_owned(),
            }),
        }
    }

    async fn client(&self) -> Result<Client, MemberFault> {
        let connecting = async {
            let mut kept = self.client.lock().await;
            if let Some(client) = &*kept {
                return Ok(client.clone());
            }
            let client = Client::connect([&self.endpoint], Some(self.options.clone())).await?;
            *kept = Some(client.clone());
            Ok(client)
        };
        match timeout(self.connect_timeout, connecting).await {
            Ok(connected) => connected.map_err(|error| MemberFault::new(&self.endpoint, &error)),
            Err(_) => Err(self.silent(self.connect_timeout)),
        }
    }

    async fn within<T>(
        &self,
        asking: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, MemberFault> {
        match timeout(self.timeout, asking).await {
            Ok(answered) => answered.map_err(|error| MemberFault::new(&self.endpoint, &error)),
            Err(_) => {
                // The connection may lead nowhere: the next request makes one of its own.
                *self.client.lock().await = None;
                Err(self.silent(self.timeout))
            }
        }
    }

    fn silent(&self, after: Duration) -> MemberFault {
        MemberFault::Silent { endpoint: self.endpoint.clone(), after }
    }
}
