//! What the control side shows to others on this node: copies of its state, replaced whole, so that no reader makes it wait.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use faasnet_api::{Descriptor, FunctionId, ImageId, NodeId, Verify};
use tokio::sync::watch;

use crate::table::Row;

/// Who this agent is; fixed from its start on.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) incarnation: u64,
    pub(crate) name: String,
    /// Where other nodes reach this one.
    pub(crate) data_address: SocketAddr,
    pub(crate) memory_mib: u64,
    /// How it checks what comes from other nodes.
    pub(crate) verify: Verify,
}

/// The state as of the last change.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    /// The controller's term while it has accepted this agent; `None` while it is away.
    pub(crate) term: Option<u64>,
    /// The functions that this node is told to hold.
    pub(crate) rows: BTreeMap<FunctionId, Row>,
    /// Joins that the controller refused, with its reason.
    pub(crate) refused: BTreeMap<FunctionId, String>,
}

/// The descriptors that the feed may need: that of each function's current image.
pub(crate) type Descriptors = HashMap<FunctionId, Arc<Descriptor>>;

/// The descriptor of `image`, as soon as it is known; `None` when the control side has ended.
pub(crate) async fn descriptor_of(
    descriptors: &mut watch::Receiver<Descriptors>,
    function: FunctionId,
    image: ImageId,
) -> Option<Arc<Descriptor>> {
    let known = |all: &Descriptors| all.get(&function).filter(|descriptor| descriptor.id() == image).cloned();
    let all = descriptors.wait_for(|all| known(all).is_some()).await.ok()?;
    known(&all)
}
