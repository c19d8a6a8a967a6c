//! What the next agent needs to take an instance over: its descriptors, which the service manager stores, and its note.

use std::os::fd::AsFd as _;

use super::InstanceTask;
use crate::inject::Conversation;

impl InstanceTask {
    /// Stores the descriptors and the note of the instance for the next agent.
    pub(super) fn store(&mut self, conversation: &Conversation) {
        let control = conversation.control();
        if !self.stored && (control.is_none() || !self.descriptor_store.has_manager()) {
            return;
        }
        self.note.backends = conversation.held();
        if let Err(error) = self.note.write(self.process.directory()) {
            tracing::error!(
                instance = self.name,
                "its note cannot be written, so the next agent may not take it over: {error}"
            );
        }
        // An agent that is killed here leaves no descriptors without a note.
        if !self.stored
            && let Some(control) = control
        {
            self.stored =
                self.descriptor_store.store_instance(&self.name, control, self.page.as_fd()).is_ok();
        }
    }
}
