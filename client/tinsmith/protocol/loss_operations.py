"""The names that a custom loss may call, as torch.fx spells them. Names only: nothing here runs.

Left out on purpose: what draws random numbers, writes in place, reads memory by stride, makes sizes
depend on values, differentiates, or leaves the CPU.
"""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


ARITHMETIC = _words(
    "add sub mul truediv floordiv mod pow neg pos abs lt le gt ge eq ne and_ or_ xor invert"
)
MATH = _words(
    "exp expm1 log log1p log2 log10 sqrt pow tanh sin cos tan floor ceil fabs isfinite isnan"
)
POINTWISE = _words("""abs absolute neg negative positive sign sgn exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
    reciprocal sigmoid tanh sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv lgamma
    digamma floor ceil round trunc frac relu clamp clip clamp_min clamp_max nan_to_num isnan isinf isfinite
    logical_not logical_and logical_or logical_xor logit deg2rad rad2deg
    add sub subtract mul multiply div divide true_divide floor_divide remainder fmod pow float_power
    maximum minimum fmax fmin atan2 hypot logaddexp logaddexp2 xlogy lerp heaviside copysign
    eq ne lt le gt ge less less_equal greater greater_equal not_equal
    where masked_fill addcmul addcdiv detach clone""")
REDUCTIONS = _words("""sum mean prod amax amin max min argmax argmin std var logsumexp softmax log_softmax cumsum cumprod
    logcumsumexp cummax cummin all any norm median nansum nanmean count_nonzero dist sort argsort topk
    quantile""")
SHAPES = _words("""reshape flatten squeeze unsqueeze transpose permute movedim t flip roll chunk split unbind narrow
    select gather take_along_dim index_select scatter scatter_add tril triu diagonal
    repeat_interleave diff""")
PRODUCTS = _words("matmul mm bmm mv dot outer")
_METHODS_ONLY = _words("""float double half bfloat16 long int bool to type_as contiguous view view_as reshape_as expand repeat
    expand_as broadcast_to size numel dim ndimension nelement new_zeros new_ones new_full is_floating_point""")
FUNCTIONALS = _words("""relu silu leaky_relu elu huber_loss mse_loss smooth_l1_loss l1_loss kl_div pad log_softmax softmax
    normalize hardtanh relu6 softsign mish selu celu _threshold tanhshrink
    binary_cross_entropy_with_logits""")
COMPILED = _words("""torch._C._nn.log_sigmoid torch._C._nn.softplus torch._C._nn.gelu torch._C._nn.one_hot
    torch._C._special.special_expit torch._C._special.special_logsumexp
    torch._C._special.special_log_softmax torch._C._special.special_softmax
    torch._C._special.special_xlogy torch._C._special.special_xlog1py torch._C._special.special_entr
    torch._C._special.special_erf torch._C._special.special_log1p torch._C._special.special_expm1
    torch._C._special.special_logit torch._C._linalg.linalg_norm
    torch._C._linalg.linalg_vector_norm torch.functional.einsum torch.functional.norm
    torch.functional.split""")
FACTORIES = _words("zeros ones full arange")
_TORCH_ONLY = _words("""concat concatenate cat stack broadcast_to bucketize searchsorted cosine_similarity zeros_like
    ones_like full_like""")
FUNCTIONS = (
    frozenset({"getattr", "operator.getitem", "operator.matmul"})
    | {f"operator.{name}" for name in ARITHMETIC}
    | {f"math.{name}" for name in MATH}
    | {f"torch.{name}" for name in POINTWISE | REDUCTIONS | SHAPES | PRODUCTS}
    | {f"torch.{name}" for name in _TORCH_ONLY | FACTORIES}
    | {f"torch.nn.functional.{name}" for name in FUNCTIONALS}
    | COMPILED
)
METHODS = POINTWISE | REDUCTIONS | SHAPES | PRODUCTS | _METHODS_ONLY
ATTRIBUTES = _words("shape ndim dtype device T mT values indices")
WORDS = _words("mean sum none batchmean tanh floor trunc constant fro linear left right cpu")
DTYPES = _words(
    "float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool float double half long int"
)
