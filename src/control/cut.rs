//! Minimal cuts: the cheapest way to divide things in two, where each has a price on either side and pairs have one for
//! being apart.

use std::collections::VecDeque;

/// A price that is never paid.
pub(super) const NEVER: u64 = u64::MAX / 4;

struct Edge {
    to: usize,
    /// What can still flow along it.
    left: u64,
}

/// A network of edges with capacities.
pub(super) struct Network {
    /// Each edge is followed by the one in the opposite direction.
    edges: Vec<Edge>,
    /// The edges from each node.
    from: Vec<Vec<usize>>,
}

impl Network {
    /// Where a flow comes from: the first side.
    pub const SOURCE: usize = 0;
    /// Where it goes to: the second side.
    pub const SINK: usize = 1;

    pub fn new() -> Self {
        Self { edges: Vec::new(), from: vec![Vec::new(), Vec::new()] }
    }

    pub fn node(&mut self) -> usize {
        self.from.push(Vec::new());
        self.from.len() - 1
    }

    /// Adds a price for `one` being on the first side and `other` on the second.
    pub fn price(&mut self, one: usize, other: usize, price: u64) {
        if one == other || price == 0 {
            return;
        }
        self.from[one].push(self.edges.len());
        self.edges.push(Edge { to: other, left: price });
        self.from[other].push(self.edges.len());
        self.edges.push(Edge { to: one, left: 0 });
    }

    /// Divides the nodes so that the sum of the prices is the least; which are on the first side. Where several divisions
    /// cost the same, the one with the fewest nodes there.
    ///
    /// The maximal flow from source to sink (Edmonds and Karp, 1972: along shortest paths); what can still be reached then
    /// is the first side (Ford and Fulkerson, 1956).
    pub fn first_side(mut self) -> Vec<bool> {
        loop {
            let reached_by = self.reachable();
            if reached_by[Self::SINK].is_none() {
                return reached_by.iter().map(Option::is_some).collect();
            }
            let path = |node: usize| reached_by[node].filter(|_| node != Self::SOURCE);
            let mut amount = u64::MAX;
            let mut node = Self::SINK;
            while let Some(edge) = path(node) {
                amount = amount.min(self.edges[edge].left);
                node = self.edges[edge ^ 1].to;
            }
            let mut node = Self::SINK;
            while let Some(edge) = path(node) {
                self.edges[edge].left -= amount;
                self.edges[edge ^ 1].left += amount;
                node = self.edges[edge ^ 1].to;
            }
        }
    }

    /// For each node that more can flow to, the edge that it is reached by on a shortest path; any for the source.
    fn reachable(&self) -> Vec<Option<usize>> {
        let mut reached_by = vec![None; self.from.len()];
        reached_by[Self::SOURCE] = Some(usize::MAX);
        let mut next = VecDeque::from([Self::SOURCE]);
        while let Some(node) = next.pop_front() {
            for &edge in &self.from[node] {
                let Edge { to, left } = self.edges[edge];
                if left > 0 && reached_by[to].is_none() {
                    reached_by[to] = Some(edge);
                    next.push_back(to);
                }
            }
        }
        reached_by
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least price over all divisions.
    fn least(nodes: usize, prices: &[(usize, usize, u64)]) -> u64 {
        let cost = |side: &dyn Fn(usize) -> bool| -> u64 {
            prices.iter().filter(|(one, other, _)| side(*one) && !side(*other)).map(|(_, _, price)| price).sum()
        };
        (0..1u32 << nodes)
            .map(|mask| {
                cost(&|node| match node {
                    Network::SOURCE => true,
                    Network::SINK => false,
                    node => mask >> (node - 2) & 1 == 1,
                })
            })
            .min()
            .unwrap()
    }

    #[test]
    fn no_division_is_cheaper() {
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let nodes = 1 + random(7) as usize;
            let mut network = Network::new();
            for _ in 0..nodes {
                network.node();
            }
            let mut prices = Vec::new();
            for _ in 0..random(25) {
                let (one, other) = (random(nodes as u64 + 2) as usize, random(nodes as u64 + 2) as usize);
                let price = random(20);
                if one != other {
                    prices.push((one, other, price));
                    network.price(one, other, price);
                }
            }
            let side = network.first_side();
            let paid: u64 =
                prices.iter().filter(|(one, other, _)| side[*one] && !side[*other]).map(|(_, _, price)| price).sum();
            assert!(side[Network::SOURCE] && !side[Network::SINK]);
            assert_eq!(paid, least(nodes, &prices), "{prices:?}");
        }
    }
}
