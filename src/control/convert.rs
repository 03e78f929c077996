//! Conversion with a check: the INT8 model is compared with the float one before anybody gets it, and what breaks it stays in
//! float.

use super::Ranges;
use super::repair::Patient;
use crate::check::{Check, Misfit, Reference};
use crate::error::{Error, Result};
use crate::quantizer::{Converted, Prepared};

impl Prepared {
    /// Makes the INT8 module and checks it on up to 32 of the samples that it was calibrated with
    /// ([`Quantizer::check`](crate::Quantizer::check)).
    /// The prepared module stays as it is.
    ///
    /// A layer that breaks the model stays in float; the report says which, and what the check measured
    /// ([`Report::check`](crate::Report::check), `None` where there were no samples).
    ///
    /// # Errors
    /// Where static quantization saw no data, a pass refuses the module, or the INT8 model does not fit the float one and
    /// leaving layers in float does not help.
    pub fn convert(&self) -> Result<Converted> {
        crate::init()?;
        let made = self.convert_unchecked();
        let Some(least_db) = self.quantizer.check else { return made };
        let Some(float) = &self.float else { return made };
        let misfit = match (&made, self.is_ready()) {
            (Err(Error::Cancelled), _) | (Err(_), false) => return made,
            (Err(error), true) => Some(Misfit::Fails(error.to_string())),
            (Ok(_), _) => None,
        };
        let batches = self.check_samples.batches();
        if batches.is_empty() && misfit.is_none() {
            return made;
        }
        let reference = match batches {
            [] => None,
            batches => Some(Reference::of(float, batches, least_db)?),
        };
        let outcome = match (misfit, &reference, &made) {
            (None, Some(reference), Ok(converted)) => reference.compare(&converted.module)?,
            (Some(misfit), ..) => Err(misfit),
            _ => return made,
        };
        let (mut converted, checked, left_in_float) = match (outcome, made) {
            (Ok(checked), Ok(converted)) => (converted, Some(checked), Vec::new()),
            (Err(misfit), made) => {
                tracing::info!("{misfit}; looking for where it begins");
                let chosen = made.as_ref().ok().and_then(|converted| converted.report.chosen_range);
                let known = if self.inputs.is_empty() { batches } else { self.inputs.batches() };
                let patient = Patient {
                    quantizer: &self.quantizer,
                    float,
                    batches: known,
                    ranges: Ranges::seen(self, chosen)?,
                    reference: reference.as_ref(),
                    least_db,
                };
                // Where nothing helps, the first error is the one that tells most.
                let repaired = match (patient.repair(&misfit), made) {
                    (Err(Error::Cancelled), _) => return Err(Error::Cancelled),
                    (Err(_), Err(first)) => return Err(first),
                    (repaired, _) => repaired?,
                };
                (repaired.converted, repaired.checked, repaired.left_in_float)
            }
            (Ok(_), Err(error)) => return Err(error),
        };
        if let (Some((fit, fresh)), Some(batch)) = (checked, batches.first()) {
            let mut found = Check { left_in_float, ..Check::of(&fit) };
            found.measure_speed(&float.clone_with_own_state()?, &fresh, batch)?;
            converted.report.check = Some(found);
        }
        Ok(converted)
    }
}
