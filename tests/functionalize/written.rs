//! One kind of write a test: into what, through what, where.

use crate::models::*;

fn body(lines: &str) -> String {
    let lines: Vec<_> = lines.lines().map(|line| format!("    {line}")).collect();
    format!("def forward(self, x: Tensor, y: Tensor):\n    v = self.layer(x)\n{}\n", lines.join("\n"))
}

/// One test for each: the lines after `v = self.layer(x)`.
macro_rules! pure {
    ($($name:ident: $lines:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_pure(&body($lines), 0);
        }
    )*};
}

/// As `pure`, with one copy into the argument, or into a new tensor through a view.
macro_rules! copied {
    ($($name:ident: $lines:expr;)*) => {$(
        #[test]
        fn $name() {
            assert_pure(&body($lines), 1);
        }
    )*};
}

macro_rules! same {
    ($($name:ident: $lines:expr;)*) => {$(
        #[test]
        fn $name() {
            let model = assert_same(&body($lines));
            assert!(!left(&model).1.is_empty(), "it says what stays");
        }
    )*};
}

pure! {
    a_slice: "v[:, 1:3] = v[:, 0:2] * 2.0\nreturn self.layer(v) + v";
    a_row: "v[1] = y[0]\nv[-1].fill_(3.0)\nreturn self.layer(v) + v";
    an_operator: "w = v + 1.0\nw.add_(y)\nw *= 2.0\nreturn self.layer(w) + v";
    a_view: "w = v.view([16])\nw[3:9].add_(1.0)\nreturn self.layer(v) + v";
    a_reshaped_tensor: "w = v.reshape([2, 8])\nw[0] = 3.0\nreturn self.layer(v) + v";
    a_flattened_tensor: "w = v.flatten()\nw[3:9].add_(1.0)\nreturn self.layer(v) + v";
    a_contiguous_tensor: "w = v.contiguous()\nw.add_(1.0)\nreturn self.layer(v) + v";
    a_tensor_reshaped_twice: "w = (v + y).reshape([2, 8]).flatten(0, 1)\nw.add_(1.0)\nreturn self.layer(w.reshape([4, 4])) + v";
    a_transposed_view: "v.transpose(0, 1)[0:2].mul_(2.0)\nv.t()[3] = y[1]\nreturn self.layer(v)";
    a_permuted_view: "w = v.unsqueeze(0).permute([2, 0, 1])\nw[1] = 5.0 * y[0:1]\nreturn v";
    a_diagonal: "torch.diagonal(v).fill_(7.0)\nreturn self.layer(v)";
    an_unbound_row: "a, b, c, d = torch.unbind(v, 0)\nb.add_(a)\nreturn self.layer(v) + d";
    a_mask: "v.masked_fill_(y > 0.0, 2.0)\nv[y < -4.0] = 1.0\nreturn self.layer(v) + v";
    an_index: "i = torch.tensor([0, 2])\nv[i] = y[i]\nreturn self.layer(v)";
    a_name_of_the_same: "w = v\nw.add_(1.0)\nreturn self.layer(v) + v";
    filled: "w = self.layer(v)\nv.fill_(3.0)\nz = self.layer(v)\nv.zero_()\nreturn w + z + v";
    read_between_two_writes: "v.add_(1.0)\na = self.layer(v)\nv.mul_(0.0)\nreturn a + v";
    unsqueezed_in_place: "w = v * 1.0\nw.unsqueeze_(0)\nw[0, 1] = 4.0 * y[0]\nw.squeeze_(0)\nreturn self.layer(w)";
    out_of: "w = torch.zeros([4, 4])\ntorch.add(v, y, out=w)\nreturn self.layer(w)";
    a_branch: "if bool(v.sum() > 4.0):\n    v[:, 2:] = y[:, 2:]\nelse:\n    v.add_(2.0)\nreturn self.layer(v)";
    a_branch_without_else: "w = v[1:3]\nif bool(y.sum() > 0.0):\n    w.add_(2.0)\nreturn self.layer(v) + w.sum()";
    a_loop_that_counts: "for i in range(3):\n    v[i] = v[i + 1] + float(i)\nreturn self.layer(v)";
    a_loop_of_unknown_length: "for i in range(x.size(0) - 1):\n    v[i] += v[i + 1]\nreturn self.layer(v)";
    a_loop_with_a_carried_value: "w = v + 1.0\nfor i in range(x.size(0)):\n    w = w + y\n    w[0] = 1.0 * y[1]\nreturn self.layer(w)";
    pops: "l = [v, v + y]\nl.append(self.layer(l[-1]))\nreturn torch.cat([l.pop(), l.pop()], 1)";
    pops_until_one_is_left: "l = [v, y, v + y]\nr = y\nwhile len(l) > 1:\n    r = r + self.layer(l.pop())\nreturn r + l[0]";
    all_of_a_list: "l = [v]\nl.extend([y, v + 1.0])\nl.insert(0, self.layer(y))\nl.reverse()\nl[1] = v * 2.0\ndel l[0]\nl += [y]\nreturn torch.cat(l + [v], 0)";
    a_list_of_one_thing: "l = [v] * 3\nl[0].add_(1.0)\nl[1] = y\nreturn self.layer(l[2]) + l[1]";
    a_list_of_lists: "l = [[v], [y]]\nl[0].append(y)\nl[1].clear()\nl[1].append(v)\nreturn self.layer(l[0][1]) + l[1][0] * float(len(l[0]))";
    an_item_that_is_written: "l = [v, y + 0.0]\nfor t in l:\n    t.add_(1.0)\nreturn self.layer(l[0]) + v + l[1]";
    a_list_in_branches: "l = [v, y]\nif bool(x.sum() > 0.0):\n    l[0] = y\nelse:\n    l[1] = self.layer(y)\nreturn l[0] + l[1]";
    a_dictionary: "d = {'a': v}\nd['b'] = self.layer(v)\nd['a'] = y\ns = v * 0.0\nfor k, t in d.items():\n    s = s + t\nif 'c' in d:\n    s = s * 0.0\nreturn s + d['b'] + d.pop('a')";
    a_dictionary_s_values: "d = {'a': v, 'b': y}\nd.update({'c': v + 1.0})\nl = list(d.values())\nreturn torch.cat(l, 0)";
    a_list_of_what_is_written_later: "w = x + y\nl = [v, w]\nl.insert(0, y)\nv.add_(self.n)\nv = torch.clamp(torch.stack(l, 0).sum(0), -60.0, 60.0)\nreturn [v, w, l[0], l[-1]]";
    a_copy_of_a_list: "l = [v, y]\nm = l[:]\nl.clear()\nm.append(self.layer(v))\nreturn torch.cat(m, 0)";
}

copied! {
    a_chunk: "c = torch.chunk(v, 2, 1)\nc[0].copy_(c[1])\nreturn self.layer(v)";
    an_expanded_view: "w = v.unsqueeze(0).expand([1, 4, 4])\nw.add_(1.0)\nreturn v";
    the_argument: "x.add_(1.0)\na = self.layer(x)\nx.mul_(0.0)\nreturn a + x";
    preprocessing: "y -= 2.0\ny[0] = 9.0\nreturn self.layer(y) + v";
}

same! {
    // Whether reshape of another order of memory gives a view is found out when it runs.
    a_reshaped_transposed_tensor: "w = v.t().reshape([2, 8])\nw[0] = 3.0\nreturn self.layer(v) + v";
    a_contiguous_transposed_tensor: "w = v.t().contiguous()\nw.add_(1.0)\nreturn self.layer(v) + v";
    either_of_two: "w = v + 1.0\nif bool(x.sum() > 0.0):\n    z = w\nelse:\n    z = v\nz.add_(1.0)\nreturn self.layer(w) + v";
    a_list_that_grows_for_long: "l = [v]\nfor i in range(x.size(0)):\n    l.append(self.layer(l[-1]) + 1.0)\nreturn torch.cat(l, 0)";
    a_list_of_a_branch_s_length: "l = [v]\nif bool(x.sum() > 0.0):\n    l.append(y)\nreturn self.layer(l[-1])";
    an_item_of_a_growing_list: "l = [v]\nfor i in range(x.size(0)):\n    l.append(v + 1.0)\nv.add_(1.0)\nl[1].mul_(2.0)\nreturn self.layer(l[0]) + l[1] + v";
    what_a_branch_gives: "z = y\nw = x + y\nl = [v, w]\nfor i in range(x.size(0) - 2):\n    v.add_(v)\n    w = z + z\nif bool(w.sum() > 3.0):\n    m = [[w] * 2]\n    m[0][1].add_(1.0)\n    z = m[0][0]\nelse:\n    l.append(v)\nz.add_(self.n)\nreturn [v, z, w, l[0], l[-1], y * 1.0]";
    what_a_round_passes_on: "w = torch.zeros([4, 4])\nfor i in range(x.size(0) - 2):\n    v[:, 1:3] = y[:, 0:2].clone()\n    v = w[:, :]\nreturn [v, w]";
    two_results_of_a_loop: "l = [v, x]\nif bool(y.sum() > 3.0):\n    l.append(y)\nv.add_(v)\nw, z = x, y\nfor i in range(x.size(0) - 2):\n    w = self.layer(v)\n    z = w\nif bool(w.sum() > 3.0):\n    w.add_(v)\nreturn [v, w, z, l[0]]";
    an_item_that_a_loop_passes_on: "w = x + y\nl = [v, w]\nfor i in range(x.size(0) - 2):\n    w = l[-1]\n    l[-1] = y + 1.0\nif bool(w.sum() > 3.0):\n    w.add_(self.n)\nreturn [v, w, l[0], l[-1]]";
    a_buffer_in_the_next_round: "for i in range(x.size(0) - 2):\n    v.add_(v)\n    v = self.n\nreturn [v, self.n * 1.0]";
    an_argument_in_the_first_round: "w = y\nfor i in range(x.size(0) - 2):\n    w.add_(v)\n    w = self.layer(v)\nreturn [v, w]";
}
