// Embedding tables of 8 and 4 bits: packed parameters that libtorch's operators call, and operators on plain tensors.
#include "embedding.h"

#include <ATen/ATen.h>

#include "library.h"
#include "packed.h"
#include "shared.h"
#include "tensors.h"

#include "jitquant/src/engine/bridge.rs.h"

namespace jitquant {

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

// --- look-up ---

// How bags are summed up.
struct Summing {
  bool mean;
  MaybeTensor weights;     // a factor for each index
  MaybeTensor pruned_rows; // for each index of a pruned table its row
  bool include_last_offset;
};

void check_table(const Tensor &table, const char *op) {
  TORCH_CHECK(table.scalar_type() == c10::kByte && table.dim() == 2, op, ": the table is ", table.toString(),
              " of sizes ", table.sizes(), "; uint8 [rows, bytes of a row] is accepted");
}

void check_indices(const Tensor &indices, const char *what, const char *op) {
  TORCH_CHECK(indices.scalar_type() == c10::kInt || indices.scalar_type() == c10::kLong, op, ": the ", what, " are ",
              indices.toString(), "; int32 or int64 is accepted");
}

int64_t columns_of(const Tensor &table, int64_t bits) {
  return static_cast<int64_t>(in_rust([&] { return embedding_columns(table.size(1), bits); }));
}

EmbeddingRows rows_of(const Tensor &table, int64_t bits) {
  return {values<uint8_t>(table), static_cast<size_t>(table.size(1)), bits};
}

Tensor rows_shape(const Tensor &table, const Tensor &indices, int64_t bits, const char *op) {
  check_table(table, op);
  check_indices(indices, "indices", op);
  auto sizes = indices.sizes().vec();
  sizes.push_back(columns_of(table, bits));
  return at::empty(sizes, table.options().dtype(c10::kFloat));
}

Tensor rows_at(const Tensor &table, const Tensor &indices, int64_t bits, const char *op) {
  Tensor output = rows_shape(table, indices, bits, op);
  Tensor bytes = table.contiguous(), places = indices.contiguous();
  in_rust([&] {
    if (places.scalar_type() == c10::kInt)
      embedding_i32(rows_of(bytes, bits), values<int32_t>(places), writable<float>(output));
    else
      embedding_i64(rows_of(bytes, bits), values<int64_t>(places), writable<float>(output));
  });
  return output;
}

Tensor bags_shape(const Tensor &table, const Tensor &indices, const MaybeTensor &offsets, int64_t bits,
                  bool include_last_offset, const char *op) {
  check_table(table, op);
  check_indices(indices, "indices", op);
  TORCH_CHECK(indices.dim() == (offsets ? 1 : 2), op, ": indices of sizes ", indices.sizes(), " with",
              offsets ? "" : "out", " offsets; [indices] with offsets, or [bags, indices] without, is accepted");
  if (offsets) {
    check_indices(*offsets, "offsets", op);
    TORCH_CHECK(offsets->dim() == 1, op, ": offsets of sizes ", offsets->sizes(), "; one dimension is accepted");
  }
  int64_t starts = offsets ? offsets->size(0) : indices.size(0);
  int64_t bags = std::max<int64_t>(starts - include_last_offset, 0);
  return at::empty({bags, columns_of(table, bits)}, table.options().dtype(c10::kFloat));
}

// Where bags begin: as given, or one for each row of the indices.
Tensor starts_of(const Tensor &indices, const MaybeTensor &offsets) {
  return offsets ? *offsets : at::arange(indices.size(0), indices.options()) * indices.size(1);
}

Tensor factors_of(const Tensor &weights, const Tensor &indices, const char *op) {
  TORCH_CHECK((weights.scalar_type() == c10::kFloat || weights.scalar_type() == c10::kHalf) &&
                  weights.numel() == indices.numel(),
              op, ": ", weights.numel(), " weights of ", weights.toString(), " for ", indices.numel(),
              " indices; as many, of float32 or float16, are accepted");
  return weights.detach().to(c10::kFloat).contiguous();
}

// As libtorch has it: a map of a single 0 stands for none.
Tensor checked_map(const Tensor &map, const char *op) {
  TORCH_CHECK(map.scalar_type() == c10::kInt && map.numel() > 0, op, ": the mapping is ", map.toString(), " of ",
              map.numel(), " elements; int32, an element for each index, is accepted");
  bool is_none = map.numel() == 1 && map.item<int32_t>() == 0;
  return is_none ? map.reshape(-1).slice(0, 0, 0) : map.contiguous();
}

Tensor bags_at(const Tensor &table, const Tensor &indices, const MaybeTensor &offsets, int64_t bits,
               const Summing &summing, const char *op) {
  Tensor output = bags_shape(table, indices, offsets, bits, summing.include_last_offset, op);
  Tensor bytes = table.contiguous(), starts = starts_of(indices, offsets);
  auto type = indices.scalar_type() == starts.scalar_type() ? indices.scalar_type() : c10::kLong;
  Tensor places = indices.to(type).contiguous(), begins = starts.to(type).contiguous();
  Tensor factors = summing.weights ? factors_of(*summing.weights, indices, op) : Tensor();
  Tensor map = summing.pruned_rows ? checked_map(*summing.pruned_rows, op) : Tensor();
  BagForm form{summing.include_last_offset, summing.mean,
               factors.defined() ? values<float>(factors) : rust::Slice<const float>(),
               map.defined() ? values<int32_t>(map) : rust::Slice<const int32_t>()};
  in_rust([&] {
    if (type == c10::kInt)
      embedding_bag_i32(rows_of(bytes, bits), values<int32_t>(places), values<int32_t>(begins), form,
                        writable<float>(output));
    else
      embedding_bag_i64(rows_of(bytes, bits), values<int64_t>(places), values<int64_t>(begins), form,
                        writable<float>(output));
  });
  return output;
}

// --- packed parameters ---

// Stands in for libtorch's packed table.
class Embedding final : public EmbeddingPackedParamsBase {
public:
  Embedding(Tensor table, Tensor scales, Tensor zero_points, int64_t bits)
      : table_(std::move(table)), scales_(std::move(scales)), zero_points_(std::move(zero_points)), bits_(bits) {}

  static c10::intrusive_ptr<Embedding> pack(EmbeddingPackedParamsBase &stock) {
    int64_t bits = stock.bit_rate();
    Tensor weight = stock.unpack().contiguous();
    TORCH_CHECK(weight.dim() == 2 && weight.qscheme() == c10::kPerChannelAffineFloatQParams &&
                    weight.q_per_channel_axis() == 0,
                "the table is ", weight.toString(), " of sizes ", weight.sizes(), ", quantized ",
                toString(weight.qscheme()), "; [rows, columns] with a scale and an offset a row is accepted");
    in_rust([&] { return embedding_row_bytes(weight.size(1), bits); });
    // Copies: libtorch's are memory of the stock object, which goes away.
    auto copied = [](const Tensor &x) { return x.to(c10::kFloat, /*non_blocking=*/false, /*copy=*/true).contiguous(); };
    Tensor scales = copied(weight.q_per_channel_scales()), zero_points = copied(weight.q_per_channel_zero_points());
    auto column = [&](const Tensor &x) {
      return x.to(bits == 8 ? c10::kFloat : c10::kHalf).reshape({-1, 1}).view(c10::kByte);
    };
    Tensor quantized = at::from_blob(weight.data_ptr(), {weight.size(0), weight.size(1) * bits / 8}, c10::kByte);
    Tensor table = at::cat({quantized, column(scales), column(scales * -zero_points)}, 1);
    return c10::make_intrusive<Embedding>(std::move(table), std::move(scales), std::move(zero_points), bits);
  }

  // The rows, as the operators on plain tensors take them.
  const Tensor &table(int64_t bits, const char *op) const {
    TORCH_CHECK(bits == bits_, op, ": a table of ", bits_, " bits; one of ", bits, " is accepted");
    return table_;
  }

  Tensor embeddingbag_byte(const Tensor &indices, const MaybeTensor &offsets, bool pruned, const MaybeTensor &weights,
                           const MaybeTensor &map, bool include_last_offset, bool is_embedding) override {
    const char *op = is_embedding ? "quantized::embedding_byte" : "quantized::embedding_bag_byte";
    return look_up(8, indices, offsets, pruned, weights, map, include_last_offset, is_embedding, op);
  }

  Tensor embeddingbag_4bit(const Tensor &indices, const MaybeTensor &offsets, bool pruned, const MaybeTensor &weights,
                           const MaybeTensor &map, bool include_last_offset, bool is_embedding) override {
    const char *op = is_embedding ? "quantized::embedding_4bit" : "quantized::embedding_bag_4bit";
    return look_up(4, indices, offsets, pruned, weights, map, include_last_offset, is_embedding, op);
  }

  Tensor unpack() override {
    int64_t columns = columns_of(table_, bits_);
    auto options = at::TensorOptions().dtype(bits_ == 8 ? c10::kQUInt8 : c10::kQUInt4x2);
    Tensor weight =
        at::_empty_per_channel_affine_quantized({table_.size(0), columns}, scales_, zero_points_, 0, options);
    Tensor bytes = at::from_blob(weight.data_ptr(), {table_.size(0), columns * bits_ / 8}, c10::kByte);
    bytes.copy_(table_.slice(1, 0, bytes.size(1)));
    return weight;
  }

  int64_t bit_rate() const override { return bits_; }

  // Of libtorch's file format.
  int64_t version() const override { return 1; }

private:
  Tensor look_up(int64_t bits, const Tensor &indices, const MaybeTensor &offsets, bool pruned,
                 const MaybeTensor &weights, const MaybeTensor &map, bool include_last_offset, bool is_embedding,
                 const char *op) const {
    TORCH_CHECK(!pruned || map, op, ": pruned weights without compressed_indices_mapping");
    for (const MaybeTensor &given : {MaybeTensor(indices), offsets, weights, map})
      TORCH_CHECK(!given || given->is_cpu(), op, ": an argument is ", given->toString(), "; the CPU is accepted");
    if (is_embedding && !pruned)
      return rows_at(table(bits, op), indices, bits, op);
    Summing summing{false, weights, pruned ? map : std::nullopt, include_last_offset};
    return bags_at(table(bits, op), indices, offsets, bits, summing, op);
  }

  Tensor table_;
  Tensor scales_;
  Tensor zero_points_;
  int64_t bits_;
};

// --- operators on plain tensors ---

Tensor table_from_packed(const c10::intrusive_ptr<EmbeddingPackedParamsBase> &packed, int64_t bits, const char *op) {
  if (auto *ours = dynamic_cast<Embedding *>(packed.get()))
    return ours->table(bits, op);
  static auto *shared = new Shared<EmbeddingPackedParamsBase, Embedding>;
  return shared->of(packed, [&] { return Embedding::pack(*packed); })->table(bits, op);
}

Tensor byte_from_packed(const c10::intrusive_ptr<EmbeddingPackedParamsBase> &packed) {
  return table_from_packed(packed, 8, "jitquant::embedding_byte_from_packed");
}

Tensor four_bits_from_packed(const c10::intrusive_ptr<EmbeddingPackedParamsBase> &packed) {
  return table_from_packed(packed, 4, "jitquant::embedding_4bit_from_packed");
}

Tensor prepack_shape(const Tensor &weight, int64_t bits) {
  constexpr auto op = "jitquant::embedding_prepack";
  TORCH_CHECK(weight.scalar_type() == c10::kFloat && weight.dim() == 2, op, ": the weight is ", weight.toString(),
              " of sizes ", weight.sizes(), "; float32 [rows, columns] is accepted");
  auto bytes = static_cast<int64_t>(in_rust([&] { return embedding_row_bytes(weight.size(1), bits); }));
  return at::empty({weight.size(0), bytes}, weight.options().dtype(c10::kByte));
}

Tensor prepack(const Tensor &weight, int64_t bits) {
  Tensor table = prepack_shape(weight, bits), given = weight.contiguous();
  in_rust([&] { quantize_rows(values<float>(given), weight.size(1), bits, writable<uint8_t>(table)); });
  return table;
}

constexpr auto kEmbedding = "jitquant::embedding";
constexpr auto kBag = "jitquant::embedding_bag";

Tensor embedding(const Tensor &table, const Tensor &indices, int64_t bits) {
  return rows_at(table, indices, bits, kEmbedding);
}

Tensor embedding_shape(const Tensor &table, const Tensor &indices, int64_t bits) {
  return rows_shape(on_meta(table), indices, bits, kEmbedding);
}

Tensor bag(const Tensor &table, const Tensor &indices, const MaybeTensor &offsets, int64_t bits, bool mean,
           const MaybeTensor &weights, const MaybeTensor &map, bool include_last_offset) {
  return bags_at(table, indices, offsets, bits, {mean, weights, map, include_last_offset}, kBag);
}

Tensor bag_shape(const Tensor &table, const Tensor &indices, const MaybeTensor &offsets, int64_t bits, bool,
                 const MaybeTensor &, const MaybeTensor &, bool include_last_offset) {
  return bags_shape(on_meta(table), indices, offsets, bits, include_last_offset, kBag);
}

} // namespace

c10::intrusive_ptr<EmbeddingPackedParamsBase> our_embedding(EmbeddingPackedParamsBase &stock) {
  return Embedding::pack(stock);
}

bool is_our_embedding(EmbeddingPackedParamsBase &packed) { return dynamic_cast<Embedding *>(&packed) != nullptr; }

// Keeps this file's registrations in whatever links the library.
void keep_native_embeddings() {}

#define PACKED "__torch__.torch.classes.quantized.EmbeddingPackedParamsBase packed"

JITQUANT_DEFINITIONS(embedding_definitions, m) {
  m.def("embedding_prepack(Tensor weight, int bits=8) -> Tensor");
  m.def("embedding_byte_from_packed(" PACKED ") -> Tensor", byte_from_packed);
  m.def("embedding_4bit_from_packed(" PACKED ") -> Tensor", four_bits_from_packed);
  m.def("embedding(Tensor table, Tensor indices, int bits=8) -> Tensor");
  m.def("embedding_bag(Tensor table, Tensor indices, Tensor? offsets=None, int bits=8, bool mean=False, "
        "Tensor? per_sample_weights=None, Tensor? compressed_indices_mapping=None, bool include_last_offset=False) "
        "-> Tensor");
}

JITQUANT_KERNELS(embedding_kernels, CPU, m) {
  m.impl("embedding_prepack", prepack);
  m.impl("embedding", embedding);
  m.impl("embedding_bag", bag);
}

JITQUANT_KERNELS(embedding_shapes, Meta, m) {
  m.impl("embedding_prepack", prepack_shape);
  m.impl("embedding", embedding_shape);
  m.impl("embedding_bag", bag_shape);
}

} // namespace jitquant
