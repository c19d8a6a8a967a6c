//! What the programs must do with a packet, told from the library alone: the kernel's answer is compared with
//! this one on every row and mutant.

use std::collections::HashMap;

use headstart_ebpf::auth::{Key, TagClaim, recent_epoch};
use headstart_ebpf::event::{AUTHENTICATED, EventKind, Stat, SynEvent};
use headstart_ebpf::maps::{
    FUNCTION_AUTH_CONNECT, FUNCTION_AUTH_WAKE, FUNCTION_NONE, FUNCTION_OPTION, FUNCTION_WARM, FunctionEntry,
    PacketFlow, PortKey,
};
use headstart_ebpf::option::{FunctionOption, claim, shorten};
use headstart_ebpf::packet::{Options, Packet, Skip, Syn, read};

use crate::kernel::{Kernel, Run, counted};
use crate::proofs::{
    CLOSED, CONNECT, CONNECT_WARM, EPOCH, GUEST, KEY, KNOCK_PORT, SHARED, WAKE, WARM, WITHOUT_DEFAULT,
};

/// A node as the tests configure it, without budgets.
#[derive(Default)]
pub struct Model {
    functions: HashMap<PortKey, FunctionEntry>,
    keys: HashMap<u8, Key>,
    epoch: u64,
    knock_port: u16,
    used: HashMap<(u64, u64, u32), PacketFlow>,
    opened: Vec<([u64; 2], u32)>,
}

impl Model {
    /// A node with every kind of function, see [`super::proofs`].
    pub fn of_every_kind(kernel: &mut Kernel) -> Self {
        let mut model = Self::default();
        let shared = FUNCTION_OPTION;
        let any = PortKey::any;
        for (key, function, flags) in [
            (any(SHARED), 1, shared),
            (any(SHARED).with_id(GUEST), 2, shared),
            (any(SHARED).with_id(WARM), 3, shared | FUNCTION_WARM),
            (any(SHARED).with_id(CLOSED), 5, shared | FUNCTION_AUTH_CONNECT),
            (any(WAKE), 4, shared | FUNCTION_AUTH_WAKE),
            (any(CONNECT), 5, shared | FUNCTION_AUTH_CONNECT),
            (any(CONNECT).with_id(CLOSED), 5, shared | FUNCTION_AUTH_CONNECT),
            (any(WITHOUT_DEFAULT), 0, shared | FUNCTION_NONE),
            (any(WITHOUT_DEFAULT).with_id(GUEST), 2, shared),
            (any(CONNECT_WARM), 6, shared | FUNCTION_AUTH_CONNECT | FUNCTION_WARM),
            (PortKey::id(GUEST), 2, shared),
            (PortKey::id(WARM), 3, shared | FUNCTION_WARM),
            (PortKey::id(CLOSED), 5, shared | FUNCTION_AUTH_CONNECT),
        ] {
            model.own(kernel, key, function, flags);
        }
        model.trust(kernel, KEY, EPOCH, KNOCK_PORT);
        model
    }

    /// Makes `key` belong to `function`, here and in the kernel.
    pub fn own(&mut self, kernel: &mut Kernel, key: PortKey, function: u32, flags: u32) {
        kernel.own(key, function, flags);
        self.functions.insert(key, FunctionEntry { function, flags });
    }

    /// Sets key 1, the epoch, and the port of knocks, here and in the kernel.
    pub fn trust(&mut self, kernel: &mut Kernel, key: Key, epoch: u64, knock_port: u16) {
        kernel.know(1, key);
        kernel.set(|settings| {
            (settings.epoch, settings.knock_port) = (epoch, knock_port);
            settings.opened_ns = 3_600_000_000_000;
        });
        self.keys.insert(1, key);
        (self.epoch, self.knock_port) = (epoch, knock_port);
    }

    /// What a frame must lead to; its times are 0.
    pub fn run(&mut self, frame: &[u8]) -> Run {
        match read(frame) {
            Ok(Packet::Syn(syn, options)) => self.syn(frame, &syn, &options),
            Ok(Packet::Udp(udp)) if self.knock_port == 0 || udp.dst_port != self.knock_port => {
                passed(&[Stat::NotSyn])
            }
            Ok(Packet::Udp(udp)) => match udp.knock(frame) {
                None => passed(&[Stat::KnockInvalid]),
                Some((sender, knock)) => self.knock(&sender, &knock),
            },
            Err(Skip::Malformed) => passed(&[Stat::Malformed]),
            Err(_) => passed(&[Stat::NotSyn]),
        }
    }

    fn entry(&self, syn: &Syn, id: u32) -> Option<FunctionEntry> {
        let find = |key: PortKey| self.functions.get(&key.with_id(id)).copied();
        find(PortKey::exact(syn.dst, syn.dst_port)).or_else(|| find(PortKey::any(syn.dst_port)))
    }

    fn syn(&mut self, frame: &[u8], syn: &Syn, options: &Options) -> Run {
        let Some(mut entry) = self.entry(syn, 0) else { return passed(&[Stat::Unowned]) };
        let mut notes = Vec::new();
        let mut trusted = false;
        if entry.flags & FUNCTION_OPTION != 0 {
            match options.function(frame) {
                Ok(None) => {}
                Err(_) => notes.push(Stat::BadOption),
                Ok(Some(option)) => {
                    let named = (option.function != 0).then(|| self.entry(syn, option.function)).flatten();
                    entry = named.unwrap_or(entry);
                    match self.verify(syn, &option) {
                        Ok(verified) => trusted = verified,
                        Err(note) => notes.push(note),
                    }
                }
            }
        }
        if entry.flags & FUNCTION_NONE != 0 {
            return passed(&[&[Stat::Unowned], &notes[..]].concat());
        }
        let closed = entry.flags & (FUNCTION_AUTH_WAKE | FUNCTION_AUTH_CONNECT) != 0;
        trusted |= closed && self.opened.contains(&(syn.src.network().words(), entry.function));
        let event = SynEvent::new(syn, entry.function, EventKind::Syn, 0, 0);
        let mut run = passed(&[]);
        let stat = if entry.flags & FUNCTION_AUTH_CONNECT != 0 && !trusted {
            run.dropped = true;
            Stat::Refused
        } else if entry.is_warm() {
            Stat::Warm
        } else if trusted {
            run.authenticated.push(SynEvent { flags: AUTHENTICATED, ..event });
            Stat::Authenticated
        } else if closed {
            Stat::Unauthenticated
        } else {
            run.open.push(event);
            Stat::Event
        };
        notes.push(stat);
        run.counted = counted(&notes);
        run
    }

    /// Whether there is a tag and it is right.
    fn verify(&mut self, syn: &Syn, option: &FunctionOption) -> Result<bool, Stat> {
        if option.key == 0 {
            return Ok(false);
        }
        let key = *self.keys.get(&option.key).ok_or(Stat::UnknownKey)?;
        let epoch = recent_epoch(self.epoch, option.epoch).ok_or(Stat::BadEpoch)?;
        let claim = claim(option.key, epoch, option.function, syn.dst_port, syn.isn);
        if shorten(claim.tag(key)) != option.tag {
            return Err(Stat::BadTag);
        }
        let flow = flow(syn);
        let first = *self.used.entry(used(&claim, key)).or_insert(flow);
        if first == flow { Ok(true) } else { Err(Stat::Replayed) }
    }

    fn knock(&mut self, sender: &Syn, knock: &headstart_ebpf::knock::Knock) -> Run {
        let claim = knock.claim();
        let key = self.keys.get(&knock.key).copied().filter(|key| claim.tag(*key) == knock.tag);
        let recent = knock.epoch.abs_diff(self.epoch) <= 1;
        let entry = self.functions.get(&PortKey::id(knock.function)).copied();
        let (Some(key), true, Some(entry)) = (key, recent, entry) else {
            return passed(&[Stat::KnockInvalid]);
        };
        if self.used.contains_key(&used(&claim, key)) {
            return Run { dropped: true, ..passed(&[Stat::KnockReplayed]) };
        }
        self.used.insert(used(&claim, key), flow(sender));
        self.opened.push((sender.src.network().words(), entry.function));
        let mut run = Run { dropped: true, ..passed(&[Stat::Knock]) };
        if !entry.is_warm() {
            run.authenticated.push(SynEvent::new(sender, entry.function, EventKind::Knock, AUTHENTICATED, 0));
        }
        run
    }
}

fn used(claim: &TagClaim, key: Key) -> (u64, u64, u32) {
    (claim.tag(key), claim.epoch, claim.function)
}

pub fn flow(syn: &Syn) -> PacketFlow {
    PacketFlow { src: syn.src, dst: syn.dst, src_port: syn.src_port, dst_port: syn.dst_port, pad: 0 }
}

/// A packet that goes on and raises no event.
pub fn passed(stats: &[Stat]) -> Run {
    Run { dropped: false, mean_ns: 0, counted: counted(stats), open: vec![], authenticated: vec![] }
}
