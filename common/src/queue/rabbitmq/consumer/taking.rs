//! A queue being taken from.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    message,
    options::{BasicCancelOptions, BasicConsumeOptions},
    types::FieldTable,
};

use super::{
    super::{
        Broker,
        error::{BrokerError, during},
        link::Link,
        look::counts,
        topology::{self, Extent},
    },
    settling::requeue,
};
use crate::model::reference::ModelName;

/// How long a broker may take to end its deliveries.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// One model's queue, and the stream of its deliveries.
pub(super) struct Taking {
    model: ModelName,
    consumer: lapin::Consumer,
}

impl Taking {
    /// Sees to it that the queue is there, and begins. `serial` is the link's number.
    pub(super) async fn begin(
        broker: &Broker,
        link: &Link,
        serial: u64,
        model: ModelName,
    ) -> Result<Taking, BrokerError> {
        let queue = broker.names.queue(&model);
        if broker.extent() == Extent::Declare && counts(link, &queue).await?.is_none() {
            tracing::warn!(
                "there is no queue for the model {model} in the namespace {}: nothing was enqueued for it, or its queue \
                 was deleted; it is made now (what there is: `dispatcher status`)",
                broker.names.namespace()
            );
        }
        let side = link.side_channel().await?;
        topology::declare_model(&side, &broker.names, &model, broker.extent()).await?;
        let _ = side.close(200, "done".into()).await;
        let tag = format!("{}-{serial}-{model}", std::process::id());
        let consumer = link
            .channel
            .basic_consume(
                queue.as_str().into(),
                tag.chars().take(255).collect::<String>().as_str().into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| during(format!("take jobs from the queue {queue}"), &error))?;
        tracing::info!("taking jobs from the queue {queue}");
        Ok(Taking { model, consumer })
    }

    /// Whose queue it is.
    pub(super) fn model(&self) -> &ModelName {
        &self.model
    }

    /// The next delivery; none where the broker ended them.
    pub(super) async fn next(&mut self) -> Option<lapin::Result<message::Delivery>> {
        self.consumer.next().await
    }

    /// Takes no more; what had been sent already goes back. False where the broker does not answer.
    pub(super) async fn end(mut self, link: &Link) -> bool {
        let end = async {
            if link.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await.is_ok() {
                // The broker's answer comes after the last delivery, and ends the stream.
                while let Some(Ok(delivery)) = self.consumer.next().await {
                    let _ = delivery.acker.nack(requeue()).await;
                }
            }
        };
        tokio::time::timeout(LEAVE_PATIENCE, end).await.is_ok()
    }
}
