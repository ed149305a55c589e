/* What a decoder, a layer of it and a step are: the structs of decoder.py. */
#pragma once
#include "attention.h"
#include "lora.h"
#include "products.h"

typedef struct {
  const float *attention_norm, *mlp_norm;   /* [hidden] of what goes in, or NULL */
  const float *attention_after, *mlp_after; /* [hidden] of what comes out, or NULL */
  const float *query_norm, *key_norm;       /* [dim] or, where `whole_norms`, [heads][dim]; or NULL */
  Matrix query, key, value, output, gate, up, down; /* where `fused`, query has key and value in it, gate has up */
  int32_t window; /* keys that a token sees, its own included; 0: all */
  int32_t turn;   /* the set of frequencies by which queries and keys are turned; -1: they are not */
  float scale, softcap; /* of scores; 0: no cap */
} Layer;

typedef struct {
  const Layer *layers;
  const bf16 *embeddings;   /* [vocabulary][hidden] */
  const float *final_norm;  /* [hidden] */
  const float *frequencies; /* [turns][rotary / 2] of the positions' angles */
  const float *turn_scales; /* [turns] of cosines and sines */
  Matrix head;
  int32_t num_layers, hidden, inner, heads, kv_heads, dim, rotary, turns;
  int32_t dots;        /* rows are rounded to bfloat16 for products */
  int32_t narrow_cache; /* keys and values are bfloat16, else float32; in 8 bits, what they are multiplied as */
  int32_t kept;         /* AS_IS, or how they are kept in 8 bits */
  int32_t fused, whole_norms;
  int32_t gelu; /* the activation, else silu */
  float epsilon, embedding_scale;
  float given_scale; /* of what attention and MLP add to x */
  float logit_scale, logit_cap; /* 0: no cap */
} Decoder;

typedef struct {
  const int32_t *ids, *positions; /* [rows] */
  const int64_t *slots;           /* [rows] where each row's key and value are stored: block * block_size + offset */
  const int32_t *sequences;       /* [rows] row of `table` */
  const int32_t *table;           /* [sequences][max_blocks] */
  const int32_t *wanted;          /* [num_wanted] rows whose logits are wanted */
  void *const *keys, *const *values; /* [layers] of [blocks][block_size][kv_heads][dim] */
  float *const *key_scales, *const *value_scales; /* [layers] of [blocks][kv_heads][block_size], of 8 bits */
  float *hidden;  /* [num_wanted][hidden]: after the last norm */
  float *logits;  /* [num_wanted][vocabulary], or NULL */
  char *scratch;  /* decoder_scratch bytes */
  const float *embedded;        /* [rows][hidden] in place of the table's rows, or NULL */
  const Updates *const *updates; /* [layers][GROUPS] low-rank updates, NULL where there are none; or NULL */
  int64_t *nanoseconds;         /* [PARTS] that steps have spent */
  Dealt dealt;                  /* rows that have updates; the decoder has their places, and room for `low` */
  int32_t rows, num_wanted, max_blocks, block_size;
} Step;

/* What attention multiplies. */
static inline int narrow_of(const Decoder *d) { return is_narrow(d->narrow_cache, d->kept); }

/* Layers that get the same inputs. */
enum { ENTRIES, OUTPUT, GATES, DOWN, GROUPS };
#define MOST_LAYERS 3 /* of them */
