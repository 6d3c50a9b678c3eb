// What the handler hands to the code of one instruction set: plain data, nothing with code of its own.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace rnnjax {

// Counted up with every change to what Python hands over: its arrays, its attributes, or the meaning of a number in them.
constexpr int32_t INTERFACE = 7;

struct Instruction {
  int32_t operation, destination, a, b, c;
};

// A vector program. Registers: inputs, then constants, then temporaries.
struct Code {
  const Instruction* instructions;
  int64_t instruction_count;
  const double* constants;
  int64_t constant_count;
  const int32_t* outputs;
  int64_t output_count;
  int32_t inputs, registers;
};

// One row of the gate buffer: which gate it is, and which products fill it.
struct PreActivation {
  int32_t gate, input, recurrent;
};

// Bounds that the handler checks, so that small tables can have fixed sizes.
constexpr int MOST_REGISTERS = 512, MOST_PRE_ACTIVATIONS = 64, MOST_FIELDS = 16, MOST_UNIT_PARAMETERS = 64;

// The operations of a vector program, by the names that Python knows them by.
#define RNNJAX_OPERATIONS(X) \
  X(neg) X(abs) X(sign) X(floor) X(ceil) X(round_even) X(sqrt) X(rsqrt) X(exp) X(expm1) X(log) X(log1p) \
  X(tanh) X(logistic) X(sin) X(cos) X(tan) X(asin) X(acos) X(atan) X(sinh) X(cosh) X(erf) X(erfc) \
  X(reciprocal) X(add) X(sub) X(mul) X(div) X(max) X(min) X(pow) X(atan2) X(lt) X(le) X(gt) X(ge) X(eq) X(ne) \
  X(select) X(multiply_add)
namespace operation {
#define RNNJAX_NUMBER(NAME) NAME,
enum : int32_t { RNNJAX_OPERATIONS(RNNJAX_NUMBER) count };
#undef RNNJAX_NUMBER
#define RNNJAX_NAME(NAME) #NAME " "
constexpr char names[] = RNNJAX_OPERATIONS(RNNJAX_NAME);  // each followed by a space
#undef RNNJAX_NAME
}  // namespace operation

struct Shape {
  int64_t S, B, T, I, N, D, G, F, K, C;
};

// A matrix or vector of weights by group; `stride` elements from one group to the next, 0 where all share one.
struct Shared {
  const void* data;
  int64_t stride;
};

// What the code depends on, of the processor that is here.
struct Processor {
  int products;  // of vectors of 512 bits, that a core can start in a cycle
  bool pairs;    // multiplies pairs of bfloat16, and does so faster than it multiplies floats
};

struct Problem {
  Shape shape;
  Processor processor;
  const PreActivation* pre_activations;
  Code code;
  Shared W, b, R, unit_parameters, initial;
  const void* xs;
  const void* state;
  const int32_t* length;   // null: all T
  const uint8_t* resets;   // null: none
  const int64_t* order;    // of [S B], in each group the longest first; null: as they come
};

struct Forward {
  Problem problem;
  void* const* states;  // F, each [S B T H] or null
  void* last;           // [S B F H]
  void* residuals;           // [S B T C H], or null
};

// Prepared weights: W and R as [blocks][rows][G][PREPARED_UNITS], a block for as many units of one head; zeros beyond the
// head's last unit.
constexpr int64_t PREPARED_UNITS = 16;

struct Prepared {
  Problem problem;
  Shared W_scale, R_scale;  // [G H], of each column of W and R; null: one
  void* const* states;      // F, each [S B T H] or null
  void* last;               // [S B F H]
};

struct Backward {
  Problem problem;
  const void* const* states;
  const void* residuals;
  const void* const* dstates;  // F, each [S B T H] or null
  const void* dlast;           // or null
  void* dxs;                   // these: null where not wanted
  void* dW;
  void* db;
  void* dR;
  void* dunit_parameters;
  void* dinitial;
  void* dstate;
};

// Whoever runs tasks: `run` calls `task(context, index)` once for each index, perhaps on several threads, and returns when
// all are done; `work` is about how many nanoseconds one thread would need for them all. `take` lends aligned scratch, to be
// given back; it returns null when there is none to be had.
struct Crew {
  int64_t threads;
  void* self;
  void (*run)(void* self, int64_t tasks, int64_t work, void (*task)(void* context, int64_t index), void* context);
  void* (*take)(void* self, size_t bytes);
  void (*give)(void* self, void* memory);
};

// Both halves for one dtype of xs, W, b and R; each returns false when out of memory.
struct Kernel {
  bool (*forward)(const Forward&, const Crew&);
  bool (*backward)(const Backward&, const Crew&);
};

// The forward half on prepared weights, for one dtype of states, by the dtype of W and R: that of states, or a narrow one.
typedef bool (*PreparedCode)(const Prepared&, const Crew&);
struct PreparedKernel {
  PreparedCode full, bfloat16, int8;
};
struct PreparedKernels {
  PreparedKernel float32, float64;
};

// h_t = a_t h_{t-1} + b_t; late: h_t = a_{t-1} h_{t-1} + b_t. Where `a` is exactly zero, what was before is forgotten.
struct LinearScan {
  int64_t B, T, H;
  bool shared;  // one `a` for all rows
  bool reverse, late;
  const void* a;        // [B T H], or [1 T H]
  const void* b;        // [B T H]
  const void* initial;  // [B H]
  void* h;              // [B T H]
};
typedef void (*LinearScanCode)(const LinearScan&, const Crew&);
struct LinearScans {
  LinearScanCode float32, float64, complex64, complex128;
};

// S = decay S - erase_key (erase' S) + key value', and of each step S' query; B sequences of N heads, K keys by V values.
struct MatrixScan {
  int64_t B, T, N, K, V;
  int64_t decays;         // of a head at each step: K, or 1
  bool reads_before;      // the query reads the state before the step
  const void* decay;      // [B T N decays]
  const void* key;        // [B T N K]
  const void* value;      // [B T N V]
  const void* query;      // [B T N K]
  const void* erase;      // [B T N K], or null
  const void* erase_key;  // [B T N K], or null: the key
  const void* state;      // [B N K V]
  const void* start;      // [B N K V], the state after a reset, or null: zeros
  const uint8_t* resets;  // [B T], or null
  const int32_t* length;  // [B], the steps from it on are ignored: they leave the state alone, and emit zeros; null: all T
};
struct MatrixScanForward {
  MatrixScan problem;
  void* ys;    // [B T N V]
  void* last;  // [B N K V]
};
struct MatrixScanBackward {
  MatrixScan problem;
  const void* dys;
  const void* dlast;
  void* ddecay;  // these: like the arrays that they belong to, or null where not needed
  void* dkey;
  void* dvalue;
  void* dquery;
  void* derase;
  void* derase_key;
  void* dstate;
  void* dstart;
};
// Both halves for one dtype; each returns false when out of memory.
struct MatrixScanCode {
  bool (*forward)(const MatrixScanForward&, const Crew&);
  bool (*backward)(const MatrixScanBackward&, const Crew&);
};
struct MatrixScans {
  MatrixScanCode float32, float64;
};

// All of one instruction set.
struct Target {
  Kernel float32, float64, bfloat16;
  LinearScans linear_scan;
  MatrixScans matrix_scan;
  const PreparedKernels* prepared;
};

}  // namespace rnnjax
