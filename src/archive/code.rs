//! How deeply code nests.
//!
//! libtorch's parser and compiler call themselves for every bracket, every operator of a chain and every block. The text is
//! not parsed here: what is counted is at least the depth of the tree that the parser makes of it.

/// The deepest nesting that a thread's stack of 2 MB holds with room to spare; what libtorch writes has some dozens.
const DEEPEST: usize = 300;

/// The longest text between two brackets, commas and line ends, in operators: they make a tree as deep.
const OPERATORS: &[u8] = b"+-*/%@<>=&|^~.:";

/// Words that make a tree deeper.
const WORDS: &[&str] = &["and", "or", "not", "if", "else", "elif", "in", "is", "lambda"];

/// Looks at a file of TorchScript.
///
/// # Errors
/// Where it nests too deeply, or is no text.
pub(super) fn check(content: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is no text".to_owned())?;
    let mut scan = Scan { levels: vec![Level::default()], blocks: vec![0] };
    let mut rest = text.as_bytes();
    let mut line = 1;
    let mut at_start = true;
    while let Some(&byte) = rest.first() {
        let at = |why: String| format!("{why} (line {line})");
        if at_start {
            let indent = rest.iter().take_while(|byte| **byte == b' ' || **byte == b'\t').count();
            let is_empty = matches!(rest.get(indent), None | Some(b'\n' | b'\r' | b'#'));
            if !is_empty && scan.levels.len() == 1 {
                scan.begin_line(indent).map_err(at)?;
            }
            at_start = false;
            rest = &rest[indent..];
            continue;
        }
        let len = match byte {
            b'\n' => {
                line += 1;
                at_start = true;
                scan.end_line();
                1
            }
            0 => return Err(at("a zero byte".to_owned())),
            b'#' => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            b'"' | b'\'' => {
                let len = string_len(rest);
                line += rest[..len].iter().filter(|byte| **byte == b'\n').count();
                len
            }
            b'(' | b'[' | b'{' => {
                scan.open().map_err(at)?;
                1
            }
            b')' | b']' | b'}' => {
                scan.close().map_err(at)?;
                1
            }
            b',' | b';' => {
                scan.next_item();
                1
            }
            _ if byte.is_ascii_alphabetic() || byte == b'_' => {
                let len = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
                if WORDS.iter().any(|word| word.as_bytes() == &rest[..len]) {
                    scan.operator().map_err(at)?;
                }
                len
            }
            b'.' if rest.get(1).is_some_and(u8::is_ascii_digit) => 1,
            _ if byte.is_ascii_digit() => {
                rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'.').count()
            }
            _ if OPERATORS.contains(&byte) => {
                scan.operator().map_err(at)?;
                1
            }
            _ => 1,
        };
        rest = &rest[len..];
    }
    Ok(())
}

/// The text between two brackets.
#[derive(Default)]
struct Level {
    /// Operators since the last comma.
    operators: usize,
    /// The most between two commas.
    most: usize,
}

struct Scan {
    /// The statement, and the brackets that are open in it.
    levels: Vec<Level>,
    /// How far each open block is indented.
    blocks: Vec<usize>,
}

impl Scan {
    fn begin_line(&mut self, indent: usize) -> Result<(), String> {
        while self.blocks.len() > 1 && self.blocks.last().is_some_and(|block| *block > indent) {
            self.blocks.pop();
        }
        if self.blocks.last().is_some_and(|block| *block < indent) {
            self.blocks.push(indent);
        }
        self.ensure_shallow()
    }

    /// A statement ends with its line where no bracket is open.
    fn end_line(&mut self) {
        if let [level] = &mut self.levels[..] {
            *level = Level::default();
        }
    }

    fn open(&mut self) -> Result<(), String> {
        self.levels.push(Level::default());
        self.ensure_shallow()
    }

    /// What stood inside is part of what stands outside.
    fn close(&mut self) -> Result<(), String> {
        let inner = self.levels.pop().unwrap_or_default();
        let Some(outer) = self.levels.last_mut() else { return Err("a bracket closes that none opened".to_owned()) };
        outer.operators += 1 + inner.most.max(inner.operators);
        self.ensure_shallow()
    }

    fn next_item(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.most = level.most.max(level.operators);
            level.operators = 0;
        }
    }

    fn operator(&mut self) -> Result<(), String> {
        if let Some(level) = self.levels.last_mut() {
            level.operators += 1;
        }
        self.ensure_shallow()
    }

    fn ensure_shallow(&self) -> Result<(), String> {
        let depth = self.blocks.len() + self.levels.iter().map(|level| 1 + level.operators).sum::<usize>();
        match depth <= DEEPEST {
            true => Ok(()),
            false => Err(format!("the code nests more than {DEEPEST} deep")),
        }
    }
}

/// Bytes from a quote to the one that ends the text, or to the line's or the file's end.
fn string_len(text: &[u8]) -> usize {
    let quote = text[0];
    let is_long = text.len() >= 3 && text[1] == quote && text[2] == quote;
    let mut at = if is_long { 3 } else { 1 };
    while at < text.len() {
        match text[at] {
            b'\\' => at += 1,
            b'\n' if !is_long => return at,
            byte if byte == quote && !is_long => return at + 1,
            byte if byte == quote && text[at..].len() >= 3 && text[at + 1] == quote && text[at + 2] == quote => {
                return at + 3;
            }
            _ => {}
        }
        at += 1;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtorch_writes_passes() {
        let long_list = format!("  x = [{}]\n", "-1.5, ".repeat(100_000));
        let calls = "  a = torch.add(torch.mul(x, y), self.b.c.d[0], alpha=1)\n".repeat(10_000);
        check(format!("class A(Module):\n  def forward(self, x):\n{long_list}{calls}    return x\n").as_bytes())
            .unwrap();
        check(b"s = \"((((\"\nt = 'it\\'s ((('\n# ((((\n").unwrap();
        check("s = \"\"\"a\n'(((\n\"\"\"\n".as_bytes()).unwrap();
    }

    #[test]
    fn deep_code_is_refused() {
        let indented: String = (0..400).map(|depth| format!("{}if True:\n", " ".repeat(depth))).collect();
        for deep in [
            format!("x = {}1{}", "(".repeat(400), ")".repeat(400)),
            format!("x = {}1", "-".repeat(400)),
            format!("x = {}1", "not ".repeat(400)),
            format!("x = 1{}", " + 1".repeat(400)),
            format!("x = f{}", "(1)".repeat(400)),
            format!("x = a{}", ".a".repeat(400)),
            format!("x = {}", "1 if b else ".repeat(400)),
            format!("x : {}int{}", "List[".repeat(400), "]".repeat(400)),
            indented,
        ] {
            let refusal = check(deep.as_bytes()).unwrap_err();
            assert!(refusal.contains("more than 300 deep"), "{refusal}");
        }
    }
}
