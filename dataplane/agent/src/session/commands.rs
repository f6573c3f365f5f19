//! Commands of the controller, parsed: what came through here has ids and addresses of the right form.
//!
//! Pure.

use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, IdError, ImageId, NodeId, Stripe, Ticket, v1};
use faasnet_origin::Credentials;

use crate::table::Version;
use crate::worker::mailbox::{Assignment, StripePlan, Target};

/// More fallbacks than a node would ever try are a mistake.
const MAX_FALLBACKS: usize = 64;
/// More planned children than any policy gives are a mistake.
const MAX_PLANNED: usize = 64;
/// A longer lease would be no lease.
const MAX_LEASE: Duration = Duration::from_secs(3600);
/// Blocks that are read back by one command.
const MAX_REREAD: usize = 64;

/// What the controller may order.
#[derive(Debug)]
pub(crate) enum Order {
    /// The session is accepted.
    Accepted(v1::Accepted),
    /// Hold a function.
    Assign(Box<AssignOrder>),
    /// Let a function go.
    Drop {
        /// Which.
        function: FunctionId,
        /// Version of the command.
        version: Version,
        /// Free the disk too.
        discard: bool,
    },
    /// Somebody refused a block of this node: look at the disk.
    Reread {
        /// The image, and whose.
        function: FunctionId,
        image: ImageId,
        /// To be repeated in the answer.
        request: u64,
        /// Which blocks.
        blocks: Vec<BlockIndex>,
    },
    /// The answer to `OriginWanted`.
    OriginLease {
        /// Which function.
        function: FunctionId,
        /// Which stripe.
        stripe: Stripe,
        /// How long; zero: not now.
        lease: Duration,
    },
    /// The keys whose tickets are accepted from now on.
    TicketKeys(v1::TicketKeys),
    /// A `JoinRequested` is refused.
    JoinRefused(v1::JoinRefused),
    /// Register an image for the runtime here that asks for it.
    ReadImage(v1::ReadImage),
    /// The answer to an `ImageWanted`: the function that has the image, or why there is none for this node.
    ImageAnswer {
        /// As in the question.
        request: u64,
        /// The answer.
        answer: Result<FunctionId, String>,
    },
}

/// A parsed `Assign`.
#[derive(Debug)]
pub(crate) struct AssignOrder {
    pub(crate) tenant: String,
    pub(crate) name: String,
    /// `stored` is not known yet.
    pub(crate) assignment: Assignment,
    /// The encoded descriptor, unchecked, if the controller sent it.
    pub(crate) descriptor: Option<Vec<u8>>,
    /// For the function's registry, if that is private and the controller knows it.
    pub(crate) login: Option<Credentials>,
    /// As it came, without the descriptor and the login.
    pub(crate) message: v1::Assign,
}

/// Why a command makes no sense to this version.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OrderError {
    #[error("the command is empty or of a later version; upgrade this node")]
    Unknown,
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("{0:?} is not an address of the form IP:port")]
    Address(String),
    #[error("{0}")]
    Malformed(&'static str),
}

impl Order {
    /// Parses a command.
    pub(crate) fn parse(command: v1::Command) -> Result<Self, OrderError> {
        use v1::command::Command;
        Ok(match command.command.ok_or(OrderError::Unknown)? {
            Command::Accepted(accepted) => Self::Accepted(accepted),
            Command::Assign(assign) => Self::Assign(Box::new(AssignOrder::parse(assign)?)),
            Command::Drop(drop) => Self::Drop {
                function: FunctionId::try_from(&drop.function_id[..])?,
                version: Version { term: drop.term, epoch: drop.epoch },
                discard: drop.discard,
            },
            Command::Reread(reread) => Self::Reread {
                function: FunctionId::try_from(&reread.function_id[..])?,
                image: ImageId::try_from(&reread.image_id[..])?,
                request: reread.request,
                blocks: reread.blocks.into_iter().take(MAX_REREAD).map(BlockIndex).collect(),
            },
            Command::TicketKeys(keys) => Self::TicketKeys(keys),
            Command::JoinRefused(refused) => Self::JoinRefused(refused),
            Command::OriginLease(lease) => Self::OriginLease {
                function: FunctionId::try_from(&lease.function_id[..])?,
                stripe: u8::try_from(lease.stripe)
                    .map(Stripe)
                    .map_err(|_| OrderError::Malformed("a lease for a stripe that cannot be"))?,
                lease: Duration::from_secs(lease.seconds.into()).min(MAX_LEASE),
            },
            Command::ReadImage(order) => Self::ReadImage(order),
            Command::ImageAnswer(answer) => Self::ImageAnswer {
                request: answer.request,
                answer: match answer.function_id.is_empty() {
                    true => Err(answer.reason),
                    false => Ok(FunctionId::try_from(&answer.function_id[..])?),
                },
            },
            // The session answers it.
            Command::Challenge(_) => return Err(OrderError::Malformed("a challenge after the first")),
        })
    }
}

impl AssignOrder {
    pub(crate) fn parse(mut assign: v1::Assign) -> Result<Self, OrderError> {
        let descriptor = Some(std::mem::take(&mut assign.descriptor)).filter(|bytes| !bytes.is_empty());
        let login = assign.login.take().map(|v1::Login { username, password }| Credentials { username, password });
        let message = assign.clone();
        let function = FunctionId::try_from(&assign.function_id[..])?;
        if function != FunctionId::new(&assign.tenant, &assign.function) {
            return Err(OrderError::Malformed("the function's id and names do not belong together"));
        }
        if !(1..=2).contains(&assign.stripes.len()) {
            return Err(OrderError::Malformed("an assignment has one or two stripes"));
        }
        let assignment = Assignment {
            function,
            image: ImageId::try_from(&assign.image_id[..])?,
            term: assign.term,
            epoch: assign.epoch,
            ticket: parse_ticket(&assign.ticket)?,
            stripes: assign.stripes.into_iter().map(parse_stripe).collect::<Result<_, _>>()?,
            stored: None,
        };
        Ok(Self { tenant: assign.tenant, name: assign.function, assignment, descriptor, login, message })
    }
}

fn parse_ticket(bytes: &[u8]) -> Result<Ticket, OrderError> {
    bytes.try_into().map(Ticket::from_bytes).map_err(|_| OrderError::Malformed("a ticket of the wrong length"))
}

fn parse_stripe(plan: v1::StripePlan) -> Result<StripePlan, OrderError> {
    if plan.fallbacks.len() > MAX_FALLBACKS || plan.children.len() > MAX_PLANNED {
        return Err(OrderError::Malformed("more fallbacks or children than a plan can have"));
    }
    let upstream = plan.upstream.ok_or(OrderError::Malformed("a stripe without an upstream"))?;
    Ok(StripePlan {
        upstream: parse_target(upstream)?,
        fallbacks: plan.fallbacks.into_iter().map(parse_target).collect::<Result<_, _>>()?,
        children: plan.children.iter().map(|id| NodeId::try_from(&id[..])).collect::<Result<_, _>>()?,
    })
}

fn parse_target(upstream: v1::Upstream) -> Result<Target, OrderError> {
    use v1::upstream::Upstream;
    match upstream.upstream.ok_or(OrderError::Malformed("an upstream that is neither a node nor the origin"))? {
        Upstream::Origin(_) => Ok(Target::Origin),
        Upstream::Node(node) => {
            let id = NodeId::try_from(&node.node_id[..])?;
            let address = node.address.parse().map_err(|_| OrderError::Address(node.address))?;
            Ok(Target::Node(id, address))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An assignment of acme/resize with one stripe from the origin.
    pub(crate) fn assign(epoch: u64) -> v1::Assign {
        let origin = v1::Upstream { upstream: Some(v1::upstream::Upstream::Origin(v1::OriginRead {})) };
        v1::Assign {
            function_id: FunctionId::new("acme", "resize").to_vec(),
            tenant: "acme".into(),
            function: "resize".into(),
            image_id: vec![3; 32],
            term: 1,
            epoch,
            ticket: vec![0; faasnet_api::ticket::TICKET_BYTES],
            stripes: vec![v1::StripePlan { upstream: Some(origin), fallbacks: vec![], children: vec![vec![4; 16]] }],
            ..Default::default()
        }
    }

    fn node(address: &str) -> v1::Upstream {
        let node = v1::NodeAddress { node_id: vec![5; 16], address: address.into() };
        v1::Upstream { upstream: Some(v1::upstream::Upstream::Node(node)) }
    }

    fn parse(assign: v1::Assign) -> Result<Order, OrderError> {
        Order::parse(v1::Command { command: Some(v1::command::Command::Assign(assign)) })
    }

    /// Catches a field of an assignment that is lost on its way to the worker.
    #[test]
    fn an_assignment_arrives_whole() {
        let mut command = assign(7);
        command.stripes[0].fallbacks = vec![node("[::1]:9"), node("10.0.0.1:7410")];
        let Ok(Order::Assign(order)) = parse(command) else { panic!("refused") };
        assert_eq!((order.assignment.term, order.assignment.epoch), (1, 7));
        assert_eq!(order.assignment.image, ImageId([3; 32]));
        let stripe = &order.assignment.stripes[0];
        assert_eq!(stripe.upstream, Target::Origin);
        assert_eq!(stripe.children, [NodeId([4; 16])]);
        assert_eq!(stripe.fallbacks[1], Target::Node(NodeId([5; 16]), "10.0.0.1:7410".parse().unwrap()));
        assert!(order.descriptor.is_none());
    }

    /// Catches a malformed command that is half carried out, or that panics.
    #[test]
    fn malformed_commands_are_refused() {
        type Damage = fn(&mut v1::Assign);
        let damages: [Damage; 10] = [
            |a| a.function_id = vec![1; 16],
            |a| a.function_id = vec![1; 15],
            |a| a.image_id = vec![1; 33],
            |a| a.ticket = vec![],
            |a| a.stripes.clear(),
            |a| a.stripes = vec![a.stripes[0].clone(); 3],
            |a| a.stripes[0].upstream = None,
            |a| a.stripes[0].upstream = Some(node("host.example:1")),
            |a| a.stripes[0].fallbacks = vec![v1::Upstream { upstream: None }],
            |a| a.stripes[0].children = vec![vec![]; 65],
        ];
        for damage in damages {
            let mut command = assign(1);
            damage(&mut command);
            assert!(parse(command).is_err());
        }
        assert!(Order::parse(v1::Command { command: None }).is_err());
    }
}
