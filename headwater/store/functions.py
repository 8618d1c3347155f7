"""Functions, operators and types that a query may use: one table of constants.

An allow-list, so that what a later DuckDB adds is refused until someone has read what it does. Left out on purpose:
what reads files, settings, the catalog, sequences, variables or other sessions; what writes the log or sleeps; raw
aggregate states (bytes from outside would be trusted as memory); statements inside strings; and what makes a large
value from a small one (repeat, lpad, rpad, printf, format, bar, list_resize, scalar range): DuckDB's memory limit does
not see a value while one expression builds it.
"""

from __future__ import annotations

from typing import Final


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_AGGREGATES: Final = names("""
    any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null arg_min arg_min_null
    argmax argmin array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count count_if count_star countif
    covar_pop covar_samp entropy favg first fsum geomean geometric_mean group_concat histogram kahan_sum kurtosis
    kurtosis_pop last list listagg lttb mad max max_by mean median min min_by mode product quantile quantile_cont
    quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    reservoir_quantile sem skewness stddev stddev_pop stddev_samp string_agg sum sumkahan var_pop var_samp variance
    wavg weighted_avg
""")

_WINDOWS: Final = names("""
    cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank rank rank_dense row_number
""")

_NUMBERS: Final = names("""
    abs acos acosh add asin asinh atan atan2 atanh bin bit_count cbrt ceil ceiling cos cosh cot degrees divide even exp
    factorial fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite isinf isnan lcm least
    least_common_multiple lgamma ln log log10 log2 mod multiply nextafter pi pow power radians random round round_even
    roundbankers sign signbit sin sinh sqrt subtract tan tanh trunc xor
""")

_TIME: Final = names("""
    age ago century current_date current_localtime current_localtimestamp date_add date_diff date_part date_sub
    date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month decade epoch
    epoch_ms epoch_ns epoch_us era get_current_time get_current_timestamp hour isodow isoyear julian last_day make_date
    make_time make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz microsecond millennium millisecond
    minute month monthname nanosecond normalized_interval now quarter second strftime strptime time_bucket timezone
    timezone_hour timezone_minute to_centuries to_days to_decades to_hours to_microseconds to_millennia to_milliseconds
    to_minutes to_months to_quarters to_seconds to_timestamp to_weeks to_years today transaction_timestamp try_strptime
    week weekday weekofyear year yearweek
""")

_TEXT: Final = names("""
    array_to_string ascii base64 bit_length char_length character_length chr concat concat_ws contains
    damerau_levenshtein decode editdist3 encode ends_with format_bytes formatreadabledecimalsize formatreadablesize
    from_base64 from_hex hamming hash hex ilike_escape instr jaccard jaro_similarity jaro_winkler_similarity lcase left
    left_grapheme length length_grapheme levenshtein like_escape lower ltrim md5 mismatches nfc_normalize
    not_ilike_escape not_like_escape octet_length ord overlay position prefix regexp_escape regexp_extract
    regexp_extract_all regexp_full_match regexp_matches regexp_replace regexp_split_to_array replace reverse right
    right_grapheme rtrim sha1 sha256 split split_part starts_with str_split str_split_regex string_split
    string_split_regex string_to_array strip_accents strlen strpos substr substring substring_grapheme suffix to_base
    to_base64 to_hex translate trim ucase unhex unicode upper url_decode url_encode
""")

_NESTED: Final = names("""
    array_append array_concat array_contains array_distinct array_extract array_filter array_has array_has_all
    array_has_any array_indexof array_length array_pop_back array_pop_front array_position array_prepend array_reverse
    array_slice array_sort array_transform array_unique array_value array_zip cardinality element_at flatten len
    list_aggregate list_any_value list_append list_apply list_avg list_concat list_contains list_count list_distinct
    list_element list_extract list_filter list_first list_has list_has_all list_has_any list_indexof list_intersect
    list_last list_max list_median list_min list_mode list_pack list_position list_prepend list_product list_reduce
    list_reverse list_reverse_sort list_select list_slice list_sort list_stddev_pop list_stddev_samp list_sum
    list_transform list_unique list_value list_var_pop list_var_samp list_where list_zip map map_concat map_contains
    map_entries map_extract map_extract_value map_from_entries map_keys map_values row row_to_json struct_concat
    struct_extract struct_extract_at struct_insert struct_keys struct_pack struct_update struct_values unnest
""")

_JSON: Final = names("""
    json json_array json_array_length json_contains json_exists json_extract json_extract_path json_extract_path_text
    json_extract_string json_group_array json_group_object json_keys json_object json_quote json_structure json_type
    json_valid json_value to_json
""")

_OTHER: Final = names("""
    constant_or_null equi_width_bins error gen_random_uuid if nullif pg_typeof typeof uuid uuidv4 uuidv7
""")

#: Scalar, aggregate and window functions.
FUNCTIONS: Final = _AGGREGATES | _WINDOWS | _NUMBERS | _TIME | _TEXT | _NESTED | _JSON | _OTHER

#: Functions in FROM. They give rows one vector at a time, so their arguments bound no memory.
TABLE_FUNCTIONS: Final = names("generate_series range unnest")

#: What the parser writes operators as: arithmetic, bits, comparison, LIKE, regular expressions, JSON paths, lists.
OPERATORS: Final = names("""
    + - * / // % ** ^ & | ~ << >> || = != <> < <= > >= ! !__postfix @ ^@
    ~~ !~~ ~~* !~~* ~~~ !~ ~* -> ->> @> <@ && <-> <=>
""")

#: Types of casts and literals.
TYPES: Final = names("""
    array bigint binary bit bitstring blob bool boolean bpchar bytea char character date datetime dec decimal double
    float float4 float8 guid hugeint int int1 int128 int16 int2 int32 int4 int64 int8 integer integral interval json
    list logical long map numeric nvarchar real row short signed smallint string struct text time timestamp
    timestamp_ms timestamp_ns timestamp_s timestamp_us timestamptz timetz tinyint ubigint uhugeint uint128 uint16
    uint32 uint64 uint8 uinteger usmallint utinyint uuid varbinary varchar
""") | {"time with time zone", "timestamp with time zone"}
