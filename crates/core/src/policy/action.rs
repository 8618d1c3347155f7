//! The actions of a device, as AWS IoT names them.

use super::resource::Kind;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    Connect,
    Publish,
    /// With the RETAIN flag; `Publish` is needed beside it.
    RetainPublish,
    Subscribe,
    /// Asked for each delivery.
    Receive,
}

impl Action {
    pub const ALL: [Action; 5] =
        [Action::Connect, Action::Publish, Action::RetainPublish, Action::Subscribe, Action::Receive];

    /// As policies write it.
    pub fn name(self) -> &'static str {
        match self {
            Action::Connect => "iot:Connect",
            Action::Publish => "iot:Publish",
            Action::RetainPublish => "iot:RetainPublish",
            Action::Subscribe => "iot:Subscribe",
            Action::Receive => "iot:Receive",
        }
    }

    /// What its resources are.
    pub(super) fn kind(self) -> Kind {
        match self {
            Action::Connect => Kind::Client,
            Action::Subscribe => Kind::TopicFilter,
            Action::Publish | Action::RetainPublish | Action::Receive => Kind::Topic,
        }
    }
}

/// A set of actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Actions(u8);

impl Actions {
    pub fn add(&mut self, other: Actions) {
        self.0 |= other.0;
    }

    pub fn contains(self, action: Action) -> bool {
        self.0 & (1 << action as u8) != 0
    }

    pub fn each(self) -> impl Iterator<Item = Action> {
        Action::ALL.into_iter().filter(move |action| self.contains(*action))
    }

    /// `iot:Publish`, `iot:*` or `*`, in any case; `None`: no action of a device.
    pub fn parse(text: &str) -> Option<Actions> {
        let named = |action: &Action| action.name().eq_ignore_ascii_case(text);
        match Action::ALL.iter().find(|action| named(action)) {
            Some(action) => Some(Actions(1 << *action as u8)),
            None if text == "*" || text.eq_ignore_ascii_case("iot:*") => Some(Actions(0b11111)),
            None => None,
        }
    }
}
