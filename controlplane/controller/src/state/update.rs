//! Updates: another image for a function that exists.
//!
//! LIFECYCLE: registered beside the function's image (`next`) → taken up by the next provision, for all members at once, since the
//! members of a tree must hold the same image. Until then nothing changes for anybody.

use faasnet_api::{Descriptor, FunctionId, ImageId, NodeId, v1};

use super::State;
use super::function::{Function, Member, registry_of};
use super::io::{NewImage, Now, Output, Refusal, SessionId};
use super::records::Key;

/// An image that waits for the next provision.
#[derive(Debug, Clone)]
pub(crate) struct NextImage {
    pub(crate) image: ImageId,
    pub(crate) image_names: Vec<String>,
    pub(crate) reference: String,
    pub(crate) registry: String,
    pub(crate) image_bytes: u64,
    pub(crate) blobs: u32,
    pub(crate) descriptor: Vec<u8>,
}

impl NextImage {
    pub(crate) fn new(descriptor: &Descriptor) -> Self {
        Self {
            image: descriptor.id(),
            image_names: faasnet_origin::image_names(descriptor),
            reference: descriptor.reference().into(),
            registry: registry_of(descriptor),
            image_bytes: descriptor.geometry().image_bytes(),
            blobs: descriptor.entries().len() as u32,
            descriptor: descriptor.encode(),
        }
    }
}

impl State {
    pub(super) fn update(&mut self, now: Now, new: &NewImage) -> Result<v1::FunctionInfo, Refusal> {
        let id = self.find_function(&new.tenant, &new.name)?;
        let Some(function) = self.functions.get_mut(&id) else {
            return Err(Refusal::not_found("the function is gone"));
        };
        if function.trees.stripes() > 1 && !new.descriptor.origin().ranges() {
            return Err(Refusal::precondition(format!(
                "{} has {} trees, and the new image's origin answers no range requests, so only one root could read it; \
                 remove the function and create it again",
                new.name,
                function.trees.stripes()
            )));
        }
        // An update to the image that the function has takes back an earlier one.
        function.next = (new.descriptor.id() != function.image).then(|| NextImage::new(&new.descriptor));
        for key in [Key::NextDescriptor(id), Key::Function(id)] {
            self.emit(Output::Store(key));
        }
        if new.at_once {
            self.take_up_next(now, id, new.holder);
        }
        self.functions.get(&id).map(Function::info).ok_or_else(|| Refusal::not_found("the function is gone"))
    }

    /// A provision begins: the image that waits becomes the function's, for every member. The caller wants the members afterwards. `holder`:
    /// the stream of a node that has it already.
    pub(super) fn take_up_next(&mut self, now: Now, id: FunctionId, holder: Option<SessionId>) {
        let Some(function) = self.functions.get_mut(&id) else { return };
        let Some(next) = function.next.take() else { return };
        let names = function.image_names.clone();
        let was_failed = start_over(function, next, self.term);
        self.forget_images(id, &names);
        if let Some(function) = self.functions.remove(&id) {
            self.name_images(&function);
            self.functions.insert(id, function);
        }
        for key in [Key::Descriptor(id), Key::NextDescriptor(id), Key::Function(id)] {
            self.emit(Output::Store(key));
        }
        if let Some(session) = holder {
            // Before anybody is told: roots would begin to read the origin.
            self.hold(now, id, session);
        }
        self.note_withheld(id);
        self.align_trees(now, id, &was_failed);
        self.resend_assigns(now, id);
        let members: Vec<NodeId> =
            self.functions.get(&id).map(|function| function.wanted.keys().copied().collect()).unwrap_or_default();
        for node in members {
            self.touch_watches(id, node);
        }
    }
}

/// Makes `next` the function's image; what members reported was about the old one. Answers where the old one had failed.
fn start_over(function: &mut Function, next: NextImage, term: u64) -> Vec<NodeId> {
    function.epoch += 1;
    function.image = next.image;
    function.image_names = next.image_names;
    function.reference = next.reference;
    function.registry = next.registry;
    function.image_bytes = next.image_bytes;
    function.blobs = next.blobs;
    function.descriptor = next.descriptor;
    function.donors.fill(None);
    function.most_present = 0;
    function.leases.clear();
    let joined = (term, function.epoch);
    let mut was_failed = Vec::new();
    for (node, member) in &mut function.wanted {
        if member.failed {
            was_failed.push(*node);
        }
        let (used_ms, leaving) = (member.used_ms, member.leaving.take());
        *member = Member { joined, used_ms, leaving, ..Member::default() };
    }
    was_failed
}
