// Compares the CPU kernels with a plain loop in extended precision, on random calls. The program needs neither torch
// nor Python, so that it also runs on an emulated machine (emulate.sh).
//
//     check_kernels [ISA | all] [CASES]      default: every ISA that this machine supports, 300 cases each
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "../../csrc/cpu/conv.h"
#include "../../csrc/cpu/isa.h"

namespace {

using namespace sparsegan;

// ---------------------------------------------------------------- cases

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t from(int64_t first, int64_t last) { return first + static_cast<int64_t>(engine_() % (last - first + 1)); }
  double real() { return static_cast<double>(engine_() >> 11) * 0x1p-52 - 1; }  // in [-1, 1)
  template <class T, size_t N>
  T one_of(const T (&choices)[N]) {
    return choices[from(0, N - 1)];
  }

 private:
  std::mt19937_64 engine_;
};

struct Case {
  Geometry geometry;
  bool adjoint = false, bias = false;
  DType dtype = DType::float32;
  int64_t threads = 1, images = 1;
  int64_t coarse_h = 1, coarse_w = 1, fine_h = 1, fine_w = 1;
  Padding padding = Padding::zeros;            // around the fine side
  int64_t pad_before_h = 0, pad_before_w = 0;  // rows and columns of this padding, if it is not zeros
  double negative_slope = 1;
  std::vector<int32_t> support;

  int64_t units() const { return static_cast<int64_t>(support.size()); }
  int64_t values() const { return units() * geometry.vector(); }
  int64_t coarse_size() const { return images * geometry.coarse_channels * coarse_h * coarse_w; }
  int64_t fine_size() const { return images * geometry.fine_channels * fine_h * fine_w; }
  int64_t target_channels() const { return adjoint ? geometry.fine_channels : geometry.coarse_channels; }

  std::string text() const {
    const char* const paddings[] = {"zeros", "reflect", "replicate", "circular"};
    const Axis &h = geometry.h, &w = geometry.w;
    std::string line =
        std::string(kDTypes[static_cast<int>(dtype)].name) + (adjoint ? " coarse to fine" : " fine to coarse");
    const auto add = [&](const char* name, std::initializer_list<int64_t> numbers) {
      line.append(", ").append(name);
      for (const int64_t number : numbers) line.append(" ").append(std::to_string(number));
    };
    add("images", {images});
    add("coarse", {geometry.coarse_channels, coarse_h, coarse_w});
    add("fine", {geometry.fine_channels, fine_h, fine_w});
    add("groups", {geometry.groups});
    add("kernel", {h.kernel, w.kernel});
    add("stride", {h.stride, w.stride});
    add("padding", {h.padding, w.padding});
    add("dilation", {h.dilation, w.dilation});
    add(paddings[static_cast<int>(padding)], {pad_before_h, pad_before_w});
    add("vectors", {geometry.coarse_vector, geometry.fine_vector});
    add("units", {units()});
    add("bias", {bias});
    line += ", slope " + std::to_string(negative_slope);
    add("threads", {threads});
    return line;
  }
};

Axis draw_axis(Random& random, int64_t most_kernel) {
  Axis axis;
  axis.kernel = random.from(1, most_kernel);
  axis.stride = random.from(1, 5);
  axis.dilation = random.from(1, 3);
  axis.padding = random.from(0, axis.dilation * (axis.kernel - 1) + 1);
  return axis;
}

// Draws a fine size that a convolution maps to the coarse size `coarse`, and a transposed convolution maps back. The
// size is below 1 if torch would refuse the drawn padding. Padding other than zeros is moved from the axis to `before`.
int64_t draw_fine_size(Random& random, Axis& axis, int64_t coarse, Padding padding, int64_t& before) {
  const int64_t reach = axis.dilation * (axis.kernel - 1), needed = (coarse - 1) * axis.stride + reach + 1;
  const int64_t unused = random.from(0, axis.stride - 1);
  if (padding == Padding::zeros) return needed - 2 * axis.padding + unused;
  before = axis.padding;
  axis.padding = 0;
  const int64_t after = random.from(0, reach + 1), fine = needed - before - after + unused;
  const int64_t most = padding == Padding::reflect ? fine - 1 : padding == Padding::circular ? fine : reach + 1;
  return std::max(before, after) <= most ? fine : 0;
}

// Draws a number of channels from `first` to `last`, rounded up to whole vectors.
int64_t draw_channels(Random& random, int64_t vector, int64_t first, int64_t last) {
  return (random.from(first, last) + vector - 1) / vector * vector;
}

enum Kind { kAny, kManyImages, kLargeImages, kManyChannels, kManySpans, kSeparating, kKinds };

// Draws all of `c` except dtype, direction, padding mode, vectors and support. Returns false if no such sizes exist.
bool draw_sizes(Random& random, Kind kind, Case& c) {
  Geometry& g = c.geometry;
  g.groups = random.from(1, 3);
  g.fine_channels = g.groups * g.fine_vector * random.from(1, 4);
  g.coarse_channels = g.groups * g.coarse_vector * random.from(1, 4);
  g.h = draw_axis(random, 5);
  g.w = draw_axis(random, 5);
  c.images = random.from(1, 3);
  c.coarse_h = random.from(1, 9);
  c.coarse_w = random.from(1, 9);
  if (kind == kManyImages) {  // more images than two vectors hold
    c.images = random.from(33, 50);
    c.coarse_h = random.from(1, 3);
    c.coarse_w = random.from(1, 3);
  } else if (kind == kLargeImages) {  // several tiles, and several groups of tiles
    c.coarse_h = random.from(1, 40);
    c.coarse_w = random.from(20, 70);
  } else if (kind == kManyChannels) {  // several source blocks
    const bool fine = random.from(0, 1);
    g.fine_channels = g.groups * (fine ? draw_channels(random, g.fine_vector, 30, 90) : g.fine_vector);
    g.coarse_channels = g.groups * (fine ? g.coarse_vector : draw_channels(random, g.coarse_vector, 30, 90));
    c.coarse_h = random.from(1, 5);
    c.coarse_w = random.from(1, 5);
  } else if (kind == kManySpans) {  // more source channels x kernel positions than 16-bit codes
    for (Axis* axis : {&g.h, &g.w}) *axis = {random.from(4, 5), random.from(1, 5), random.from(1, 2), 1};
    const int64_t channels = (1 << 16) / g.positions() + random.from(1, 1000);
    (c.adjoint ? g.fine_channels : g.coarse_channels) = g.groups * (c.adjoint ? g.fine_vector : g.coarse_vector);
    (c.adjoint ? g.coarse_channels : g.fine_channels) =
        g.groups * draw_channels(random, c.adjoint ? g.coarse_vector : g.fine_vector, channels / g.groups + 1,
                                 channels / g.groups + 1);
    c.images = 1;
    c.coarse_h = random.from(1, 2);
    c.coarse_w = random.from(1, 2);
  } else if (kind == kSeparating) {  // the first layer of a generator: each kernel position is a phase, no zero padding
    for (Axis* axis : {&g.h, &g.w}) {
      *axis = {random.from(1, 4), 4, 0, 1};
      if (c.padding != Padding::zeros) axis->padding = random.from(0, 1);
    }
    c.images = random.from(1, 40);
    c.coarse_h = 1;
    c.coarse_w = random.from(0, 2) ? 1 : random.from(1, 5);
  }
  c.fine_h = draw_fine_size(random, g.h, c.coarse_h, c.padding, c.pad_before_h);
  c.fine_w = draw_fine_size(random, g.w, c.coarse_w, c.padding, c.pad_before_w);
  c.bias = random.from(0, 1);
  c.negative_slope = random.one_of({1.0, 0.0, 0.2});
  c.threads = random.from(0, 1) ? 1 : random.from(2, 5);
  return c.fine_h >= 1 && c.fine_w >= 1;
}

void draw_support(Random& random, Case& c) {
  // On average, one support in eight is empty and one is full.
  const int64_t density = random.from(0, 7), keep = density == 0 ? 0 : density == 1 ? 100 : random.from(5, 50);
  c.support.clear();
  for (int64_t unit = 0; unit < c.geometry.units(); ++unit) {
    if (random.from(0, 99) < keep) c.support.push_back(static_cast<int32_t>(unit));
  }
}

// Draws until the sizes exist and the call is small. dtype, direction, kind, padding mode and vectors stay the same in
// all attempts, because kinds whose calls are rarely small would otherwise be rare. `precision`: a short precision that
// the case has in place of a dtype, with units of source channels.
Case draw_case(Random& random, int64_t number, const DType* precision = nullptr) {
  constexpr int64_t kMostProducts = 100'000, kMostElements = 50'000;
  Case c;
  c.dtype = precision ? *precision : static_cast<DType>(number % kTensorTypes);
  c.adjoint = number / kTensorTypes % 2 == 1;
  const auto kind = static_cast<Kind>(number / (2 * kTensorTypes) % kKinds);
  if (!c.adjoint) c.padding = static_cast<Padding>(number / (2 * kTensorTypes * kKinds) % 4);
  // Half of the cases have coarse vectors, half have fine ones.
  (random.from(0, 1) ? c.geometry.coarse_vector : c.geometry.fine_vector) = random.one_of({1, 2, 3, 4, 8});
  if (precision) {
    const int64_t depth = kDTypes[static_cast<int>(*precision)].lane_channels * random.from(1, 2);
    c.geometry.coarse_vector = c.adjoint ? depth : 1;
    c.geometry.fine_vector = c.adjoint ? 1 : depth;
  }
  for (;;) {
    if (!draw_sizes(random, kind, c) || c.coarse_size() > kMostElements || c.fine_size() > kMostElements) continue;
    draw_support(random, c);
    if (c.values() * c.images * c.coarse_h * c.coarse_w <= kMostProducts) return c;
  }
}

// ---------------------------------------------------------------- tensors

struct bfloat16 {
  uint16_t bits;
  explicit bfloat16(double x) : bits(std::bit_cast<uint32_t>(static_cast<float>(x)) >> 16) {}
  explicit operator double() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// A tensor between margins of NaN. A read outside the tensor spoils the result. A write outside it, or an element that
// is never written, is detected. The margin is odd, so that the tensor is aligned to one element only.
template <class T>
class Tensor {
 public:
  explicit Tensor(int64_t size) : memory_(size + 2 * kMargin, T(NAN)) {}
  Tensor(int64_t size, Random& random) : Tensor(size) {
    for (int64_t i = 0; i < size; ++i) data()[i] = T(random.real());
  }

  T* data() { return memory_.data() + kMargin; }
  double operator[](int64_t i) const { return double(memory_[kMargin + i]); }
  bool margins_intact() const {
    const auto is_nan = [](T x) { return std::isnan(double(x)); };
    return std::all_of(memory_.begin(), memory_.begin() + kMargin, is_nan) &&
           std::all_of(memory_.end() - kMargin, memory_.end(), is_nan);
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kMargin = 0;  // the sanitizer detects more
#else
  static constexpr int64_t kMargin = 61;
#endif
  std::vector<T> memory_;
};

// ---------------------------------------------------------------- reference

struct Sum {
  long double value = 0;  // its rounding must be smaller than that of a double
  double magnitude = 0;
  void add(double a, double b) {
    value += static_cast<long double>(a) * b;
    magnitude += std::abs(a * b);
  }
  // The slope is at most 1, so that the error of a sum does not grow.
  void activate(double negative_slope) { value = value > 0 ? value : negative_slope * value; }
};

// The index of the element that a read at index i gets, where indices outside [0, n) are padding; -1 stands for a zero.
int64_t padded_index(int64_t i, int64_t n, Padding padding) {
  if (padding == Padding::circular) return (i + n) % n;
  if (padding == Padding::replicate) return std::min(std::max<int64_t>(i, 0), n - 1);
  if (padding == Padding::reflect) return n - 1 - std::abs(n - 1 - std::abs(i));
  return i < 0 || i >= n ? -1 : i;
}

// Calls body(value index, coarse element index, fine element index) for every product of a call.
template <class Body>
void for_each_product(const Case& c, const Body& body) {
  const Geometry& g = c.geometry;
  const int64_t fine_units = g.fine_channels / g.groups / g.fine_vector;  // per group
  for (int64_t v = 0; v < c.values(); ++v) {
    // The support numbers the units of [coarse units, fine units per group, kernel_h, kernel_w]. The values of a unit
    // are neighbours.
    int64_t rest = c.support[v / g.vector()];
    const int64_t j = rest % g.w.kernel;
    rest /= g.w.kernel;
    const int64_t i = rest % g.h.kernel;
    rest /= g.h.kernel;
    const int64_t in_unit = v % g.vector();
    const int64_t in_group = rest % fine_units * g.fine_vector + in_unit % g.fine_vector;
    const int64_t coarse = rest / fine_units * g.coarse_vector + in_unit % g.coarse_vector;
    const int64_t group = coarse / (g.coarse_channels / g.groups);
    const int64_t fine = group * (g.fine_channels / g.groups) + in_group;
    for (int64_t n = 0; n < c.images; ++n) {
      for (int64_t p = 0; p < c.coarse_h; ++p) {
        const int64_t row = p * g.h.stride + i * g.h.dilation - g.h.padding - c.pad_before_h;
        const int64_t a = padded_index(row, c.fine_h, c.padding);
        if (a < 0) continue;
        for (int64_t q = 0; q < c.coarse_w; ++q) {
          const int64_t col = q * g.w.stride + j * g.w.dilation - g.w.padding - c.pad_before_w;
          const int64_t b = padded_index(col, c.fine_w, c.padding);
          if (b < 0) continue;
          body(v, ((n * g.coarse_channels + coarse) * c.coarse_h + p) * c.coarse_w + q,
               ((n * g.fine_channels + fine) * c.fine_h + a) * c.fine_w + b);
        }
      }
    }
  }
}

// The largest error of `got`, divided by the error that rounding explains: one rounding of the sum of magnitudes in the
// precision of sums, plus one rounding of the result to T.
template <class T>
double largest_error(const Tensor<T>& got, const std::vector<Sum>& expected) {
  const double sum_rounding = sizeof(T) == 8 ? 0x1p-53 : 0x1p-24, rounding = sizeof(T) == 2 ? 0x1p-8 : sum_rounding;
  if (!got.margins_intact()) return INFINITY;
  double largest = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(expected.size()); ++i) {
    const Sum& sum = expected[i];
    const auto difference = static_cast<double>(std::abs(got[i] - sum.value));
    const auto unit = sum_rounding * sum.magnitude + rounding * static_cast<double>(std::abs(sum.value));
    const double error = difference == 0 ? 0 : difference / unit;
    if (!(error <= largest)) largest = std::isnan(error) ? INFINITY : error;
  }
  return largest;
}

// ---------------------------------------------------------------- one case, one ISA

struct Errors {
  double sparse_conv, wgrad;
};

// The call of a case.
ConvCall call_of(const Case& c, const PlanView& plan) {
  ConvCall call{{&c.geometry, c.adjoint, c.images, c.fine_h, c.fine_w, c.coarse_h, c.coarse_w}, &plan, c.dtype};
  if (c.adjoint) {
    std::swap(call.x_height, call.y_height);
    std::swap(call.x_width, call.y_width);
  }
  call.padding = c.padding;
  call.pad_before_h = c.pad_before_h;
  call.pad_before_w = c.pad_before_w;
  call.output_transform.negative_slope = c.negative_slope;
  return call;
}

// The work is cut as for `threads` threads, but one thread does all of it.
ThreadPool one_thread(int64_t threads) {
  return {threads, [](int64_t count, const std::function<void(int64_t)>& body) {
            for (int64_t i = 0; i < count; ++i) body(i);
          }};
}

template <class T>
Errors run(const Case& c, Random& random) {
  const Geometry& g = c.geometry;
  std::vector<int32_t> numbers(plan_shape(g, c.adjoint, c.units()).size());
  compile_plan(g, c.adjoint, c.support.data(), c.units(), numbers.data());
  const PlanView plan =
      view_plan(g, c.adjoint, c.support.data(), c.units(), numbers.data(), static_cast<int64_t>(numbers.size()));
  const int64_t x_size = c.adjoint ? c.coarse_size() : c.fine_size();
  const int64_t y_size = c.adjoint ? c.fine_size() : c.coarse_size();
  const ConvCall call = call_of(c, plan);
  const ThreadPool pool = one_thread(c.threads);

  Tensor<T> x(x_size, random), gy(y_size, random), values(c.values(), random), bias(c.target_channels(), random);
  Tensor<T> y(y_size), dv(c.values());
  sparse_conv(call, x.data(), values.data(), c.bias ? bias.data() : nullptr, y.data(), pool);
  wgrad(call, gy.data(), x.data(), dv.data(), pool);

  std::vector<Sum> y_expected(y_size), dv_expected(c.values());
  if (c.bias) {
    const int64_t plane = call.y_height * call.y_width;
    for (int64_t i = 0; i < y_size; ++i) y_expected[i].add(1, bias[i / plane % c.target_channels()]);
  }
  for_each_product(c, [&](int64_t v, int64_t coarse, int64_t fine) {
    const int64_t to = c.adjoint ? fine : coarse, from = c.adjoint ? coarse : fine;
    y_expected[to].add(values[v], x[from]);
    dv_expected[v].add(gy[to], x[from]);
  });
  for (Sum& sum : y_expected) sum.activate(c.negative_slope);
  return {largest_error(y, y_expected), largest_error(dv, dv_expected)};
}

// Runs a case in a short precision. Weight: the type of the values.
template <class Weight>
double run_short(const Case& c, Random& random) {
  const Geometry& g = c.geometry;
  std::vector<int32_t> numbers(direct_plan_shape(g, c.adjoint, c.units()).size()), order(c.units());
  compile_direct_plan(g, c.adjoint, c.support.data(), c.units(), numbers.data(), order.data());
  const PlanView plan =
      view_plan(g, c.adjoint, c.support.data(), c.units(), numbers.data(), static_cast<int64_t>(numbers.size()), true);
  ConvCall call = call_of(c, plan);
  const bool integers = kDTypes[static_cast<int>(c.dtype)].integer;
  std::vector<float> sum_scale(c.target_channels(), 0x1p-9f);
  if (integers) {
    call.sum_scale = sum_scale.data();
    call.input_transform.most = c.dtype == DType::float32_as_int8 ? 127 : 2000;
    call.input_transform.to_integer = 1.25f * call.input_transform.most;  // a fifth of the inputs is limited
  }
  // The inputs as the panel has them.
  const auto rounded = [&](double x) {
    if (!integers) {
      const auto bits = std::bit_cast<uint32_t>(static_cast<float>(x));
      return static_cast<double>(std::bit_cast<float>((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u));
    }
    const float z = static_cast<float>(x) * call.input_transform.to_integer, most = call.input_transform.most;
    return std::nearbyint(static_cast<double>(std::clamp(z, -most, most)));
  };
  const int64_t x_size = c.adjoint ? c.coarse_size() : c.fine_size();
  const int64_t y_size = c.adjoint ? c.fine_size() : c.coarse_size();
  Tensor<float> x(x_size, random), bias(c.target_channels(), random), y(y_size);
  std::vector<Weight> values(c.values(), Weight(0)), ordered(c.values(), Weight(0));
  for (Weight& value : values) {
    if constexpr (std::is_integral_v<Weight>) {
      value = static_cast<Weight>(random.from(-16, 16));  // the sums of the longest rows stay in 32 bits
    } else {
      value = Weight(random.real());
    }
  }
  const int64_t vector = g.vector();
  for (int64_t i = 0; i < c.values(); ++i) ordered[i] = values[order[i / vector] * vector + i % vector];
  sparse_conv(call, x.data(), ordered.data(), c.bias ? bias.data() : nullptr, y.data(), one_thread(c.threads));

  std::vector<Sum> expected(y_size);
  const double scale = integers ? sum_scale[0] : 1;
  const int64_t plane = call.y_height * call.y_width;
  for (int64_t i = 0; c.bias && i < y_size; ++i) expected[i].add(1, bias[i / plane % c.target_channels()]);
  for_each_product(c, [&](int64_t v, int64_t coarse, int64_t fine) {
    expected[c.adjoint ? fine : coarse].add(double(values[v]) * scale, rounded(x[c.adjoint ? coarse : fine]));
  });
  for (Sum& sum : expected) sum.activate(c.negative_slope);
  return largest_error(y, expected);
}

bool check_shorts(const std::string& isa, int64_t cases) {
  constexpr double kMostError = 4;
  set_isa(isa);
  Random random(2);
  double largest = 0;
  int64_t wrong = 0;
  for (int64_t number = 0; number < cases; ++number) {
    const auto precision = static_cast<DType>(kTensorTypes + number % (kRows - kTensorTypes));
    const Case c = draw_case(random, number, &precision);
    const double error = precision == DType::float32_as_int16  ? run_short<int16_t>(c, random)
                         : precision == DType::float32_as_int8 ? run_short<int8_t>(c, random)
                                                               : run_short<bfloat16>(c, random);
    largest = std::max(largest, error);
    if (error > kMostError) {
      ++wrong;
      std::printf("isa %s: case %lld: error %.3g; at most %g is accepted: %s\n", isa.c_str(),
                  static_cast<long long>(number), error, kMostError, c.text().c_str());
    }
  }
  std::printf(
      "isa %s: %lld cases in short precisions (%d of them by instructions of the machine), largest error %.3g%s\n",
      isa.c_str(), static_cast<long long>(cases), std::popcount(static_cast<uint32_t>(kernels().short_precisions)),
      largest, wrong ? (", " + std::to_string(wrong) + " wrong").c_str() : "");
  return wrong == 0;
}

bool check_isa(const std::string& isa, int64_t cases) {
  constexpr double kMostError = 4;  // the roundings of a long sum add up
  set_isa(isa);
  Random random(1);
  double largest = 0;
  int64_t wrong = 0;
  for (int64_t number = 0; number < cases; ++number) {
    const Case c = draw_case(random, number);
    const Errors e = c.dtype == DType::float64    ? run<double>(c, random)
                     : c.dtype == DType::bfloat16 ? run<bfloat16>(c, random)
                                                  : run<float>(c, random);
    largest = std::max({largest, e.sparse_conv, e.wgrad});
    if (std::max(e.sparse_conv, e.wgrad) > kMostError) {
      ++wrong;
      std::printf("isa %s: case %lld: errors %.3g (sparse_conv) and %.3g (wgrad); at most %g is accepted: %s\n",
                  isa.c_str(), static_cast<long long>(number), e.sparse_conv, e.wgrad, kMostError, c.text().c_str());
    }
  }
  std::printf("isa %s: %lld cases, largest error %.3g%s\n", isa.c_str(), static_cast<long long>(cases), largest,
              wrong ? (", " + std::to_string(wrong) + " wrong").c_str() : "");
  return wrong == 0;
}

}  // namespace

int main(int argc, char** argv) {
  bool ok = true;
  try {
    const std::string isa = argc > 1 ? argv[1] : "all";
    const int64_t cases = argc > 2 ? std::atoll(argv[2]) : 300;
    if (argc > 3 || cases < 1) throw std::invalid_argument("usage: check_kernels [ISA | all] [CASES], CASES from 1 on");
    for (const std::string& name : isa == "all" ? supported_isas() : std::vector<std::string>{isa}) {
      ok = check_isa(name, cases) && ok;
      ok = check_shorts(name, cases / 2 + 1) && ok;
    }
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    ok = false;
  }
  std::fflush(stdout);
  tcdrain(STDOUT_FILENO);  // an emulated machine stops with this process, before its slow serial line has sent all
  return ok ? 0 : 1;
}
