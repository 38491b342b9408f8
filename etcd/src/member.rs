//! One member of the cluster, and what is asked of it.

use std::{sync::Arc, time::Duration};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    Settings,
    fault::MemberFault,
    health::{Health, MemberHealth},
};

/// A value, or that there is none.
pub(crate) type Value = Option<Vec<u8>>;

/// A member by its URL. Keeps one connection.
pub(crate) struct Member {
    endpoint: String,
    options: ConnectOptions,
    timeout: Duration,
    connect_timeout: Duration,
    client: Arc<Mutex<Option<Client>>>,
}

impl Member {
    pub(crate) fn new(endpoint: &str, settings: &Settings, options: ConnectOptions) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            options,
            timeout: settings.timeout,
            connect_timeout: settings.connect_timeout(),
            client: Arc::default(),
        }
    }

    /// What is in force under `key`, by consent of a majority.
    pub(crate) async fn read(self: Arc<Self>, key: String) -> Result<Value, MemberFault> {
        let asking = async |mut client: Client| client.get(key, None).await;
        let got = self.within(self.timeout, asking).await?;
        Ok(got.kvs().first().map(|found| found.value().to_vec()))
    }

    /// At most `limit` keys from `start` up to, and without, `end`.
    pub(crate) async fn range(
        self: Arc<Self>,
        start: Vec<u8>,
        end: Vec<u8>,
        limit: i64,
    ) -> Result<Vec<KeyValue>, MemberFault> {
        let options = GetOptions::new().with_range(end).with_limit(limit);
        let asking = async |mut client: Client| client.get(start, Some(options)).await;
        let mut got = self.within(self.timeout, asking).await?;
        Ok(got.take_kvs())
    }

    /// Puts `value` under `key` if that holds `expected`. `Err` of the inner
    /// result is what it holds instead; a fault leaves open what happened.
    pub(crate) async fn replace(
        self: &Arc<Self>,
        key: &str,
        expected: &Value,
        value: Vec<u8>,
    ) -> Result<Result<(), Value>, MemberFault> {
        let unchanged = match expected {
            Some(expected) => Compare::value(key, CompareOp::Equal, expected.clone()),
            None => Compare::create_revision(key, CompareOp::Equal, 0),
        };
        let transaction = Txn::new()
            .when([unchanged])
            .and_then([TxnOp::put(key, value, None)])
            .or_else([TxnOp::get(key, None)]);
        let asking = async |mut client: Client| client.txn(transaction).await;
        let done = self.within(self.timeout, asking).await?;
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

    /// How it is, if it tells within `time`.
    pub(crate) async fn health(self: Arc<Self>, time: Duration) -> MemberHealth {
        let asking = async |mut client: Client| client.status().await;
        let status = self.within(time.min(self.timeout), asking).await;
        let health = status.map(|status| Health::new(&self.endpoint, &status));
        MemberHealth { endpoint: self.endpoint.clone(), health }
    }

    async fn within<T>(
        self: &Arc<Self>,
        time: Duration,
        asking: impl AsyncFnOnce(Client) -> Result<T, etcd_client::Error>,
    ) -> Result<T, MemberFault> {
        let deadline = Instant::now() + time;
        let client = timeout_at(deadline, self.clone().client());
        let client = client.await.unwrap_or_else(|_| Err(self.silent(time)))?;
        match timeout_at(deadline, asking(client)).await {
            Ok(answered) => answered.map_err(|error| MemberFault::new(&self.endpoint, &error)),
            Err(_) => {
                // The connection may lead nowhere: the next request makes one of its
                // own, unless one is being made.
                if let Ok(mut kept) = self.client.try_lock() {
                    *kept = None;
                }
                Err(self.silent(time))
            }
        }
    }

    async fn client(self: Arc<Self>) -> Result<Client, MemberFault> {
        let mut kept = self.client.clone().lock_owned().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        // Goes on when nobody waits for it any more: etcd takes its time over a
        // password, and must not be asked to begin again and again.
        let connecting = tokio::spawn(async move {
            let client = Client::connect([&self.endpoint], Some(self.options.clone()));
            let client = match timeout(self.connect_timeout, client).await {
                Ok(connected) => connected.map_err(|it| MemberFault::new(&self.endpoint, &it))?,
                Err(_) => return Err(self.silent(self.connect_timeout)),
            };
            *kept = Some(client.clone());
            Ok(client)
        });
        connecting.await.expect("connecting does not panic")
    }

    fn silent(&self, after: Duration) -> MemberFault {
        MemberFault::Silent { endpoint: self.endpoint.clone(), after }
    }
}
