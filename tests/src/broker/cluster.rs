//! Several nodes on one machine that form one broker, for the loss of one of them.

use std::{sync::Arc, time::Duration};

use serde_json::Value;

use super::{amqp_url, builder::Options, node::Node, sandbox::Sandbox, wait::wait_until};

/// RabbitMQ nodes that found each other; a quorum queue has a replica on each.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `size` nodes and waits until all see each other.
    pub fn start(size: usize) -> Self {
        let sandbox = Arc::new(Sandbox::new());
        let names: Vec<String> = (0..size).map(|i| format!("node{i}")).collect();
        let launch = |name: &String| Node::launch(&sandbox, name, &names, &Options::default());
        let nodes: Vec<Node> = names.iter().map(launch).collect();
        nodes.iter().for_each(Node::wait_until_up);
        nodes[0].ctl(&["await_online_nodes", &size.to_string(), "--timeout", "60"]).expect(0);
        Cluster { nodes }
    }

    /// Where each node speaks AMQP, as guest.
    pub fn urls(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| amqp_url("amqp", "guest", "guest", "127.0.0.1", &node.amqp, "/"))
            .collect()
    }

    /// The index of the node that leads a quorum queue, as the others agree.
    pub fn leader_of(&self, queue: &str) -> usize {
        wait_until(&format!("queue {queue} to have a leader"), Duration::from_secs(60), || {
            let node = self.nodes.iter().find(|node| node.is_running()).expect("a node runs");
            let listed =
                node.ctl(&["-q", "list_queues", "--formatter", "json", "name", "leader"]).expect(0).json();
            let found = listed.as_array().into_iter().flatten().find(|entry| entry["name"] == queue);
            let leader = found.and_then(|entry| entry["leader"].as_str());
            let running = |node: &Node| node.is_running() && Some(&*node.erlang_name()) == leader;
            self.nodes.iter().position(running).ok_or_else(|| Value::to_string(&listed))
        })
    }

    /// kill -9 of a node.
    pub fn kill_node(&self, index: usize) {
        self.nodes[index].kill();
    }

    /// Starts a node that was killed again, and waits until it accepts connections.
    pub fn restart_node(&self, index: usize) {
        self.nodes[index].relaunch();
        self.nodes[index].wait_until_up();
    }

    /// `rabbitmqctl` at a node.
    pub fn rabbitmqctl(&self, index: usize, args: &[&str]) -> crate::Ended {
        self.nodes[index].ctl(args)
    }
}
