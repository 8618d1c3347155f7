//! Reason codes with the standard's names (section 2.4), and the error that carries one.

use super::header::PacketType;

/// What went wrong with a packet, in words fit for a log line or a reason string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} (reason code 0x{:02x})", *reason as u8)]
pub struct PacketError {
    pub reason: ReasonCode,
    pub what: &'static str,
}

impl PacketError {
    pub const fn malformed(what: &'static str) -> PacketError {
        PacketError { reason: ReasonCode::MalformedPacket, what }
    }

    pub const fn protocol(what: &'static str) -> PacketError {
        PacketError { reason: ReasonCode::ProtocolError, what }
    }

    pub const fn new(reason: ReasonCode, what: &'static str) -> PacketError {
        PacketError { reason, what }
    }
}

macro_rules! reason_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal),+ $(,)?) => {
        /// A reason code of MQTT 5. MQTT 3.1.1 peers are told by a CONNACK return code or by closing.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum ReasonCode {
            $($(#[$doc])* $name = $code),+
        }

        impl ReasonCode {
            pub const ALL: &[ReasonCode] = &[$(ReasonCode::$name),+];

            pub fn from_code(code: u8) -> Option<ReasonCode> {
                match code {
                    $($code => Some(ReasonCode::$name),)+
                    _ => None,
                }
            }
        }
    };
}

reason_codes! {
    /// Also "Normal disconnection" (DISCONNECT) and "Granted QoS 0" (SUBACK).
    Success = 0x00,
    GrantedQoS1 = 0x01,
    GrantedQoS2 = 0x02,
    DisconnectWithWillMessage = 0x04,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    ContinueAuthentication = 0x18,
    ReAuthenticate = 0x19,
    UnspecifiedError = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecificError = 0x83,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    Banned = 0x8A,
    ServerShuttingDown = 0x8B,
    BadAuthenticationMethod = 0x8C,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    PacketIdentifierInUse = 0x91,
    PacketIdentifierNotFound = 0x92,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    RetainNotSupported = 0x9A,
    QoSNotSupported = 0x9B,
    UseAnotherServer = 0x9C,
    ServerMoved = 0x9D,
    SharedSubscriptionsNotSupported = 0x9E,
    ConnectionRateExceeded = 0x9F,
    MaximumConnectTime = 0xA0,
    SubscriptionIdentifiersNotSupported = 0xA1,
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl ReasonCode {
    pub fn is_error(self) -> bool {
        self as u8 >= 0x80
    }

    /// Whether `packet` may carry this code (the "Packets" column of table 2-6).
    pub fn allowed_in(self, packet: PacketType) -> bool {
        use PacketType as P;
        let codes: &[u8] = match packet {
            P::Connack => &[
                0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95,
                0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
            ],
            P::Puback | P::Pubrec => &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            P::Pubrel | P::Pubcomp => &[0x00, 0x92],
            P::Suback => &[0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2],
            P::Unsuback => &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91],
            P::Disconnect => &[
                0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94,
                0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
            ],
            P::Auth => &[0x00, 0x18, 0x19],
            _ => &[],
        };
        codes.contains(&(self as u8))
    }

    /// The CONNACK return code of MQTT 3.1.1 (section 3.2.2.3 there) nearest to this reason; `None`: that
    /// standard has no code for it and the connection is closed without a word.
    pub fn connect_return_code(self) -> Option<u8> {
        match self {
            ReasonCode::Success => Some(0),
            ReasonCode::UnsupportedProtocolVersion => Some(1),
            ReasonCode::ClientIdentifierNotValid => Some(2),
            ReasonCode::ServerUnavailable
            | ReasonCode::ServerBusy
            | ReasonCode::ConnectionRateExceeded
            | ReasonCode::ImplementationSpecificError => Some(3),
            ReasonCode::BadUserNameOrPassword => Some(4),
            ReasonCode::NotAuthorized | ReasonCode::Banned => Some(5),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_by_its_number() {
        for &code in ReasonCode::ALL {
            assert_eq!(ReasonCode::from_code(code as u8), Some(code));
        }
        assert_eq!(ReasonCode::from_code(0x03), None);
        assert_eq!(ReasonCode::ALL.len(), 43);
    }

    #[test]
    fn disconnect_0x04_is_the_only_success_beside_normal() {
        let fine: Vec<_> = ReasonCode::ALL
            .iter()
            .filter(|c| !c.is_error() && c.allowed_in(PacketType::Disconnect))
            .collect();
        assert_eq!(fine, [&ReasonCode::Success, &ReasonCode::DisconnectWithWillMessage]);
    }
}
