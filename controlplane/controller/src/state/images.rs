//! Images by the names under which container runtimes ask for them: which function has one, and who may join it.
//!
//! The names are those of [`faasnet_origin::image_names`]. The name of a tag means what the function was registered with; whether the tag was
//! moved since is the matter of `faasnet function update`.

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::function::Function;
use super::io::{KnownImage, Now, Output, Refusal, SessionId};
use super::names::DEFAULT_TENANT;
use super::placement::Need;

/// The longest name that is looked up: a repository has 255 bytes, a digest 71, and host names end at 253.
const NAME_BYTES_MAX: usize = 640;

impl State {
    pub(super) fn name_images(&mut self, function: &Function) {
        for name in &function.image_names {
            self.images.entry(name.clone()).or_default().insert(function.id);
        }
    }

    pub(super) fn forget_images(&mut self, id: FunctionId, names: &[String]) {
        for name in names {
            if let Some(functions) = self.images.get_mut(name) {
                functions.remove(&id);
                if functions.is_empty() {
                    self.images.remove(name);
                }
            }
        }
    }

    /// What is known of an image for the tenant of the node behind a stream, and whether that node may have it.
    pub(super) fn find_image(&self, session: SessionId, reference: &str) -> KnownImage {
        let node = self.sessions.get(&session).and_then(|node| self.nodes.get(node));
        let tenant = node.and_then(|node| node.tenant.clone()).unwrap_or_else(|| DEFAULT_TENANT.into());
        let functions = self.images.get(reference).into_iter().flatten().filter_map(|id| self.functions.get(id));
        let function = functions.into_iter().find(|function| function.tenant == tenant);
        let room = match (node, function) {
            (None, _) => Err(Refusal::precondition("its agent is gone")),
            (Some(node), Some(function)) => self.check_room(function.id, node.id),
            (Some(node), None) => self.check_need(node, &Need { tenant: &tenant, name: reference, memory_mib: 0 }),
        };
        KnownImage {
            node: node.map(|node| self.name_of(&node.id)).unwrap_or_default(),
            function: function.map(|function| function.name.clone()),
            manifest: function.and_then(|function| {
                let digest = function.image_names.first()?.rsplit_once('@')?.1;
                Some(digest.to_owned())
            }),
            // Not for a node that gets no order to read either.
            login: room.is_ok().then(|| self.secrets.of_image(&tenant, reference).cloned()).flatten(),
            obstacle: room.err().map(|refusal| refusal.message),
            tenant,
        }
    }

    /// The node behind a stream has read all of the function's image for its registration: it becomes a member that is complete, so that
    /// whoever joins receives from it.
    pub(super) fn hold(&mut self, now: Now, id: FunctionId, session: SessionId) {
        let Some(&node) = self.sessions.get(&session) else { return };
        if self.check_room(id, node).is_err() {
            return;
        }
        self.want(now, id, &[node]);
        let Some(function) = self.functions.get_mut(&id) else { return };
        let mut progress = function.progress(&node);
        progress.set_state(v1::FunctionState::Complete);
        progress.bytes_present = function.image_bytes;
        function.most_present = function.image_bytes;
        if let Some(member) = function.wanted.get_mut(&node) {
            member.progress = Some(progress);
        }
        // Of an update: the members before it have nothing of the new image.
        self.settle_trees(now, id, &[], Default::default(), vec![node]);
        self.touch_watches(id, node);
    }

    /// A runtime on `node` asks for an image: the node joins a function that has it.
    pub(super) fn image_wanted(&mut self, now: Now, session: SessionId, node: NodeId, wanted: &v1::ImageWanted) {
        let (function_id, reason) = match self.function_with_image(node, &wanted.reference) {
            Ok(id) => {
                self.want(now, id, &[node]);
                self.send_assign(now, id, node, true);
                (id.to_vec(), String::new())
            }
            Err(refusal) => (Vec::new(), refusal.message),
        };
        let answer = v1::ImageAnswer { request: wanted.request, function_id, reason };
        self.emit(Output::Send { session, command: v1::command::Command::ImageAnswer(answer) });
    }

    /// One of the functions with that image: the one that the node holds, else the first for which it has room.
    fn function_with_image(&self, node: NodeId, reference: &str) -> Result<FunctionId, Refusal> {
        let named = Some(reference).filter(|name| name.len() <= NAME_BYTES_MAX).and_then(|name| self.images.get(name));
        let candidates: Vec<FunctionId> = named.into_iter().flatten().copied().collect();
        let holds =
            |id: &&FunctionId| self.functions.get(id).is_some_and(|function| function.wanted.contains_key(&node));
        let first = candidates.iter().find(holds).or(candidates.first());
        let unknown = || Refusal::not_found("no function has this image; register it with `faasnet function create`");
        let mut refusal = unknown();
        for id in first.into_iter().chain(&candidates) {
            match self.check_room(*id, node) {
                Ok(()) => return Ok(*id),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }
}
