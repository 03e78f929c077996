//! Which array is which argument of the model.

use anyhow::{Result, bail, ensure};

use super::{Dataset, Input};

/// Names that arrays of labels usually have. Such an array is left out where no argument wants it, so that data with
/// labels can be used for calibration as it is.
pub const LABEL_NAMES: [&str; 6] = ["label", "labels", "target", "targets", "y", "classes"];

impl Dataset {
    pub(super) fn bind_inputs(&mut self, arguments: &[&str], required: usize) -> Result<()> {
        let labels = self.unwanted_labels(arguments, required);
        let is_used = |index: &usize| !labels.contains(index);
        let used: Vec<usize> = (0..self.inputs.len()).filter(is_used).collect();
        let order = match self.by_name(&used, arguments) {
            Some(order) => order,
            None => self.by_position(&used, arguments, required)?,
        };
        if order.len() < required {
            let missing: Vec<String> = arguments[order.len()..required].iter().map(|a| format!("`{a}`")).collect();
            bail!("no array for {}: {}", missing.join(", "), self.mismatch(arguments, required));
        }

        let mut inputs: Vec<Option<Input>> = std::mem::take(&mut self.inputs).into_iter().map(Some).collect();
        self.inputs = order.into_iter().filter_map(|index| inputs[index].take()).collect();
        for (input, argument) in self.inputs.iter_mut().zip(arguments) {
            (*argument).clone_into(&mut input.info.name);
        }
        for label in inputs.into_iter().flatten() {
            self.notes.push(format!("array `{}` is not an input of the model and was left out", label.info.name));
        }
        Ok(())
    }

    /// Arrays that look like labels, that no argument asks for, and without which the arrays fit the arguments in
    /// number.
    fn unwanted_labels(&self, arguments: &[&str], required: usize) -> Vec<usize> {
        let is_label = |input: &Input| {
            LABEL_NAMES.iter().any(|name| input.info.name.eq_ignore_ascii_case(name))
                && !arguments.contains(&input.info.name.as_str())
                && input.info.sample_shape.iter().product::<usize>() == 1
        };
        let labels: Vec<usize> = (0..self.inputs.len()).filter(|&i| is_label(&self.inputs[i])).collect();
        let rest = self.inputs.len() - labels.len();
        let all_named = || self.inputs.iter().all(|i| is_label(i) || arguments.contains(&i.info.name.as_str()));
        let too_many = self.inputs.len() > arguments.len();
        if rest >= required && rest > 0 && (all_named() || too_many) { labels } else { Vec::new() }
    }

    /// The arrays in the order of the arguments, where each is named like one and no argument before the last is
    /// without.
    fn by_name(&self, used: &[usize], arguments: &[&str]) -> Option<Vec<usize>> {
        let find = |argument: &&str| used.iter().copied().find(|&i| self.inputs[i].info.name == **argument);
        let order: Vec<usize> = arguments.iter().map_while(find).collect();
        (order.len() == used.len()).then_some(order)
    }

    fn by_position(&self, used: &[usize], arguments: &[&str], required: usize) -> Result<Vec<usize>> {
        let mismatch = || self.mismatch(arguments, required);
        let names: Vec<&str> = used.iter().map(|&i| self.inputs[i].info.name.as_str()).collect();
        if names.len() > arguments.len() {
            let extra = names.iter().find(|name| !arguments.contains(name)).copied().unwrap_or("…");
            bail!(
                "more arrays than inputs: {}\nIf `{extra}` holds class labels, give --labels {extra}; leave out of the file \
                 what is no input",
                mismatch()
            );
        }
        let order = match used {
            [_] => used.to_vec(),
            _ if used.iter().all(|&i| self.inputs[i].ordered) => used.to_vec(),
            _ => match numbered(&names) {
                Some(order) => order.into_iter().map(|i| used[i]).collect(),
                None => bail!(
                    "the names of the arrays are not those of the model's arguments, and .safetensors files do not keep an \
                     order: {}\nName the arrays like the arguments",
                    mismatch()
                ),
            },
        };
        // A name that fits elsewhere says that the order is not the one that was meant.
        for (position, &index) in order.iter().enumerate() {
            let name = self.inputs[index].info.name.as_str();
            ensure!(
                !arguments.contains(&name) || arguments[position] == name,
                "some names of arrays are those of arguments, others are not, and by position `{name}` would become \
                 `{}`: {}",
                arguments[position],
                mismatch()
            );
        }
        Ok(order)
    }

    fn mismatch(&self, arguments: &[&str], required: usize) -> String {
        let describe = |(i, argument): (usize, &&str)| match i < required {
            true => format!("  {argument}"),
            false => format!("  {argument} (optional)"),
        };
        let listed: Vec<String> = arguments.iter().enumerate().map(describe).collect();
        let takes = if listed.is_empty() { "  nothing".to_owned() } else { listed.join("\n") };
        format!("the model takes\n{takes}\nthe data has\n{}", self.describe_inputs())
    }
}

/// The order of names that differ only in a number at their end, as `input_0` and `input_1` do.
fn numbered(names: &[&str]) -> Option<Vec<usize>> {
    let mut keys = Vec::with_capacity(names.len());
    let mut common_stem = None;
    for (index, name) in names.iter().enumerate() {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if *common_stem.get_or_insert(stem) != stem {
            return None;
        }
        keys.push((name[stem.len()..].parse::<u32>().ok()?, index));
    }
    keys.sort_unstable();
    Some(keys.into_iter().map(|(_, index)| index).collect())
}

#[cfg(test)]
mod tests {
    use super::super::stored::{ByteOrder, Bytes, StoredArray, StoredType};
    use super::super::{ElementType, InputInfo, Part, Samples};
    use super::*;

    /// Arrays of the given names, two samples each: int64 scalars where the name is that of labels, else [2, 3] floats.
    fn dataset(names: &[&str], ordered: bool) -> Dataset {
        let input = |name: &&str| {
            let is_label = LABEL_NAMES.contains(name);
            let (stored_type, element_type, sample_shape) = match is_label {
                true => (StoredType::I64, ElementType::I64, vec![]),
                false => (StoredType::F32, ElementType::F32, vec![3]),
            };
            let shape = [vec![2], sample_shape.clone()].concat();
            let bytes = Bytes::Memory(vec![0; shape.iter().product::<usize>() * stored_type.size()]);
            let samples = Samples::Stored(StoredArray { stored_type, byte_order: ByteOrder::Little, shape, bytes });
            Input {
                info: InputInfo { name: (*name).to_owned(), element_type, sample_shape, is_number: false },
                ordered,
                float64_as_float32: false,
                parts: vec![Part { path: "data".into(), samples }],
            }
        };
        Dataset { inputs: names.iter().map(input).collect(), len: 2, notes: Vec::new() }
    }

    /// The names of the arrays in the order in which they are bound.
    fn bound(names: &[&str], arguments: &[&str], required: usize, ordered: bool) -> Result<Vec<String>> {
        let mut data = dataset(names, ordered);
        // A distinct sample shape follows an array through the renaming.
        for (i, input) in data.inputs.iter_mut().enumerate() {
            if input.info.sample_shape == [3] {
                input.info.sample_shape = vec![3 + i];
            }
        }
        let shapes: Vec<_> = data.inputs.iter().map(|i| i.info.sample_shape.clone()).collect();
        data.bind(arguments, required)?;
        assert!(data.inputs().zip(arguments).all(|(info, argument)| info.name == *argument));
        let original = |shape: &Vec<usize>| shapes.iter().position(|s| s == shape).unwrap();
        Ok(data.inputs().map(|info| names[original(&info.sample_shape)].to_owned()).collect())
    }

    fn error(names: &[&str], arguments: &[&str], required: usize, ordered: bool) -> String {
        bound(names, arguments, required, ordered).unwrap_err().to_string()
    }

    #[test]
    fn names_decide_before_positions() {
        assert_eq!(bound(&["b", "a"], &["a", "b"], 2, true).unwrap(), ["a", "b"]);
        assert_eq!(bound(&["b", "a"], &["a", "b"], 2, false).unwrap(), ["a", "b"]);
    }

    #[test]
    fn positions_decide_where_names_say_nothing() {
        assert_eq!(bound(&["arr_0", "arr_1"], &["x", "y"], 2, true).unwrap(), ["arr_0", "arr_1"]);
        assert_eq!(bound(&["images"], &["x"], 1, true).unwrap(), ["images"]);
        assert_eq!(bound(&["anything"], &["x"], 1, false).unwrap(), ["anything"]);
        assert_eq!(bound(&["x", "other"], &["x", "mask"], 2, true).unwrap(), ["x", "other"]);
    }

    #[test]
    fn unordered_files_need_names_or_numbers() {
        let message = error(&["left", "right"], &["a", "b"], 2, false);
        assert!(message.contains(".safetensors files do not keep an order"), "{message}");
        let names = ["in_10", "in_2"];
        assert_eq!(bound(&names, &["a", "b"], 2, false).unwrap(), ["in_2", "in_10"]);
    }

    #[test]
    fn a_name_at_another_position_is_not_guessed() {
        let message = error(&["mask", "pixels"], &["x", "mask"], 2, true);
        assert!(message.contains("by position `mask` would become `x`"), "{message}");
    }

    #[test]
    fn optional_arguments_may_be_left_out_at_the_end() {
        assert_eq!(bound(&["x"], &["x", "mask"], 1, true).unwrap(), ["x"]);
        let message = error(&["mask"], &["x", "y", "mask"], 2, true);
        assert!(message.contains("`mask` would become `x`"), "{message}");
    }

    #[test]
    fn missing_arrays_are_named_with_all_that_is_there() {
        let message = error(&["input_ids"], &["input_ids", "attention_mask", "positions"], 2, true);
        assert_eq!(
            message,
            "no array for `attention_mask`: the model takes\n  input_ids\n  attention_mask\n  positions (optional)\n\
             the data has\n  input_ids: float32 [samples, 3]"
        );
    }

    #[test]
    fn extra_arrays_are_an_error_that_suggests_labels() {
        let message = error(&["x", "digit"], &["x"], 1, true);
        assert!(message.contains("--labels digit"), "{message}");
        assert!(
            message.contains("the data has\n  x: float32 [samples, 3]\n  digit: float32 [samples, 4]"),
            "{message}"
        );
    }

    #[test]
    fn labels_that_no_argument_wants_are_left_out_with_a_note() {
        for names in [["x", "labels"], ["labels", "x"], ["images", "y"]] {
            let mut data = dataset(&names, true);
            data.bind(&["x"], 1).unwrap();
            assert_eq!(data.inputs().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["x"]);
            assert_eq!(data.inputs[0].info.element_type, ElementType::F32, "{names:?}");
            assert!(data.notes()[0].contains("not an input of the model"), "{:?}", data.notes());
        }
        let mut optional = dataset(&["x", "labels"], true);
        optional.bind(&["x", "mask"], 1).unwrap();
        assert_eq!(optional.inputs().len(), 1);
    }

    #[test]
    fn labels_that_an_argument_wants_are_bound() {
        let mut data = dataset(&["y", "x"], true);
        data.bind(&["x", "y"], 2).unwrap();
        assert_eq!(data.inputs[1].info.element_type, ElementType::I64);
        let mut by_position = dataset(&["images", "y"], true);
        by_position.bind(&["a", "b"], 2).unwrap();
        assert_eq!(by_position.inputs().len(), 2);
    }

    #[test]
    fn a_failed_bind_leaves_the_data_as_it_was() {
        let mut data = dataset(&["a", "b", "c"], true);
        data.bind(&["x"], 1).unwrap_err();
        assert_eq!(data.inputs().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(data.notes().is_empty());
    }

    #[test]
    fn a_model_without_inputs_is_said_to_take_nothing() {
        assert!(error(&["x"], &[], 0, true).contains("the model takes\n  nothing"));
    }
}
