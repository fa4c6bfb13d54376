//! The rules of roles and channels, but for what roles say to each other (`protocol`): where they stand, who has which end
//! of a channel, and that a slot is released once, in the region that received it.

use super::{Check, Verifier, types_text};
use crate::ir::{Op, OpId, OpKind, Role, Type};

impl Verifier<'_> {
    pub(super) fn channel(&self, o: &Op, slots: u8, message: &[Type]) -> Check {
        let [] = self.operands(o)?;
        self.same("result", Type::Channel, self.result(o)?)?;
        self.require(self.region == self.k.body, "place", "the kernel's body", "a region within")?;
        self.require(slots > 0, "slots", "at least 1", slots)?;
        self.require(message.len() <= 8, "message", "at most 8 tiles", message.len())?;
        message.iter().try_for_each(|&ty| {
            self.tile("message", ty)?;
            self.well_formed("message", ty)
        })
    }

    pub(super) fn roles(&mut self, o: &Op, roles: &[Role]) -> Check {
        let [] = self.operands(o)?;
        self.no_results(o)?;
        self.require(!roles.is_empty(), "roles", "at least 1", 0)?;
        self.require(self.region == self.k.body, "place", "the end of the kernel's body", "a region within")?;
        for (i, role) in roles.iter().enumerate() {
            let registers = role.registers;
            let fits = registers == 0 || registers.is_multiple_of(8) && (24..=256).contains(&registers);
            self.require(fits, &format!("registers of role {i}"), "a multiple of 8 from 24 to 256", registers)?;
        }
        for &before in &self.k.region(self.k.body).ops {
            if std::ptr::eq(self.k.op(before), o) {
                break;
            }
            if let Some(effect) = self.effect(before) {
                let found = format!("`{}` at {}", effect.kind.mnemonic(), effect.loc);
                return self.fail("what stands before", "channels and operations without effect", found);
            }
        }
        for (i, &region) in o.regions.iter().enumerate() {
            self.role = Some(i);
            self.region(region, &[], &[], false)?;
        }
        self.role = None;
        Ok(())
    }

    /// The operation, or one in its regions, that has an effect beyond the value it computes.
    fn effect(&self, id: OpId) -> Option<&Op> {
        let op = self.k.op(id);
        let harmless = matches!(op.kind, OpKind::Channel { .. } | OpKind::Yield) || !op.kind.has_effect();
        if !harmless {
            return Some(op);
        }
        op.regions.iter().flat_map(|&r| &self.k.region(r).ops).find_map(|&op| self.effect(op))
    }

    /// `send` and `receive`.
    pub(super) fn exchange(&mut self, o: &Op) -> Check {
        let sends = o.kind == OpKind::Send;
        let Some(&channel) = o.operands.first() else { return self.fail("operands", "a channel first", "none") };
        self.same("operand 0", Type::Channel, self.k.ty(channel))?;
        let message = self.k.channel(channel).1;
        if sends {
            self.no_results(o)?;
            let found: Vec<Type> = o.operands[1..].iter().map(|&v| self.k.ty(v)).collect();
            self.require(found == message, "message", types_text(message), types_text(&found))?;
        } else {
            self.operands::<1>(o)?;
            let found: Vec<Type> = o.results.iter().map(|&v| self.k.ty(v)).collect();
            let expected: Vec<Type> = [Type::Slot].iter().chain(message).copied().collect();
            self.require(found == expected, "results", types_text(&expected), types_text(&found))?;
            self.held.push(o.results[0]);
        }
        let Some(role) = self.role else { return self.fail("place", "a role", "none around it") };
        let [sender, receiver] = self.ends.entry(channel).or_default();
        let (own, other) = if sends { (sender, receiver) } else { (receiver, sender) };
        let (own, other) = (*own.get_or_insert(role), *other);
        let what = if sends { "sender" } else { "receiver" };
        self.require(own == role, what, format!("role {own} alone"), format!("role {role} too"))?;
        self.require(other != Some(role), what, "another role than that of the other end", format!("role {role}"))
    }

    pub(super) fn release(&mut self, o: &Op) -> Check {
        self.no_results(o)?;
        let [slot] = self.operands(o)?;
        self.same("operand 0", Type::Slot, slot)?;
        match self.held.iter().position(|&held| held == o.operands[0]) {
            Some(at) => {
                self.held.remove(at);
                Ok(())
            }
            None => {
                let found = "one of a region around it, or released before";
                self.fail("slot", "one that this region received and has not released", found)
            }
        }
    }
}
