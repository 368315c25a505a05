"""The functions that a query may call, and the words that may stand before a parenthesis.

An allow-list: what is not named here is refused at the gate. Left out on purpose are functions
whose result grows with an argument instead of with the data (`repeat`, `lpad`, `range`, `printf`,
`list_resize`, ...: they kill a DuckDB process whatever its memory limit), those whose cost is
quadratic (`levenshtein`, ...), those that read files, settings, the catalog or the running
statement, and those that take a lambda.
"""

from __future__ import annotations

from typing import Final

_AGGREGATES = """
any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null
arg_min arg_min_null argmax argmin array_agg avg bit_and bit_or bit_xor bool_and bool_or corr
count count_if count_star countif covar_pop covar_samp entropy favg first fsum geomean
geometric_mean group_concat grouping grouping_id histogram kahan_sum kurtosis kurtosis_pop last
list listagg mad max max_by mean median min min_by mode percentile_cont percentile_disc product
quantile quantile_cont quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2
regr_slope regr_sxx regr_sxy regr_syy reservoir_quantile sem skewness stddev stddev_pop
stddev_samp string_agg sum sum_no_overflow sumkahan var_pop var_samp variance wavg weighted_avg
"""

_WINDOW = """
cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank
rank_dense row_number
"""

_NUMBERS = """
abs acos acosh add asin asinh atan atan2 atanh bit_count cbrt ceil ceiling cos cosh cot degrees
divide even exp factorial fdiv floor fmod gamma gcd greatest greatest_common_divisor isfinite
isinf isnan lcm least least_common_multiple lgamma ln log log10 log2 mod multiply nextafter pi
pow power radians random round round_even roundbankers sign signbit sin sinh sqrt subtract tan
tanh trunc xor
"""

_TEXT = """
ascii base64 bin bit_length char_length character_length chr concat concat_ws contains decode
encode ends_with format_bytes formatreadabledecimalsize formatreadablesize from_base64 hash hex
instr lcase left left_grapheme len length length_grapheme lower ltrim md5 nfc_normalize
octet_length ord overlay position prefix regexp_escape regexp_extract regexp_extract_all
regexp_full_match regexp_matches regexp_replace regexp_split_to_array replace reverse right
right_grapheme rtrim sha1 sha256 split split_part starts_with str_split str_split_regex
string_split string_split_regex string_to_array strip_accents strlen strpos substr substring
substring_grapheme suffix to_base64 to_hex translate trim ucase unhex unicode upper url_decode
url_encode
"""

_TIME = """
age ago century current_date current_localtime current_localtimestamp current_timestamp
date_add date_diff date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname
dayofmonth dayofweek dayofyear days_in_month decade epoch epoch_ms epoch_ns epoch_us era extract
get_current_time get_current_timestamp hour isodow isoyear julian last_day make_date make_time
make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz microsecond millennium
millisecond minute month monthname nanosecond normalized_interval now quarter second strftime
strptime time_bucket timezone timezone_hour timezone_minute to_centuries to_days to_decades
to_hours to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters to_seconds
to_timestamp to_weeks to_years today transaction_timestamp try_strptime week weekday weekofyear
year yearweek
"""

_NESTED = """
array_append array_cat array_concat array_contains array_distinct array_extract array_has
array_has_all array_has_any array_indexof array_intersect array_length array_position
array_prepend array_reverse array_reverse_sort array_slice array_sort array_to_string
array_unique array_value cardinality element_at flatten json json_array json_array_length
json_contains json_exists json_extract json_extract_path json_extract_path_text
json_extract_string json_keys json_object json_quote json_type json_valid json_value list_append
list_any_value list_avg list_bool_and list_bool_or list_cat list_concat list_contains
list_cosine_distance list_cosine_similarity list_count list_distance list_distinct
list_dot_product list_element list_extract list_first list_has list_has_all list_has_any
list_indexof list_inner_product list_intersect list_last list_max list_median list_min list_mode
list_pack list_position list_prepend list_product list_reverse list_reverse_sort list_slice
list_sort list_stddev_pop list_stddev_samp list_string_agg list_sum list_unique list_value
list_var_pop list_var_samp map map_concat map_contains map_entries map_extract
map_extract_value map_from_entries map_keys map_values row row_to_json struct_concat
struct_contains struct_extract struct_extract_at struct_has struct_insert struct_keys
struct_pack struct_position struct_values to_json unnest
"""

_OTHER = """
array cast coalesce current_catalog current_database current_schema current_user
gen_random_uuid if ifnull nullif session_user try try_cast typeof uuid uuidv4 uuidv7 version
"""

_UNREPEATABLE = """
age ago current_date current_localtime current_localtimestamp current_time current_timestamp
gen_random_uuid get_current_time get_current_timestamp localtime localtimestamp now random today
transaction_timestamp uuid uuidv4 uuidv7
"""

FUNCTIONS: Final = frozenset(
    f"{_AGGREGATES} {_WINDOW} {_NUMBERS} {_TEXT} {_TIME} {_NESTED} {_OTHER}".split()
)
"""Lower-case names."""
AGGREGATES: Final = frozenset(_AGGREGATES.split())
"""All of them that make one value of many rows."""
UNREPEATABLE: Final = frozenset(_UNREPEATABLE.split())
"""Two executors may give different values for these, or one executor at two times."""

TYPES_WITH_ARGUMENTS: Final = frozenset(
    [
        "bpchar",
        "char",
        "character",
        "datetime",
        "dec",
        "decimal",
        "float",
        "interval",
        "list",
        "numeric",
        "nvarchar",
        "precision",
        "string",
        "struct",
        "text",
        "time",
        "timestamp",
        "varchar",
        "varying",
    ]
)
"""As in `DECIMAL(12, 2)`."""

KEYWORDS_BEFORE_PARENTHESIS: Final = frozenset(
    [
        "all",
        "and",
        "any",
        "as",
        "between",
        "by",
        "case",
        "cube",
        "distinct",
        "else",
        "escape",
        "except",
        "exclude",
        "exists",
        "for",
        "from",
        "group",
        "having",
        "ilike",
        "in",
        "intersect",
        "is",
        "join",
        "lateral",
        "like",
        "limit",
        "materialized",
        "not",
        "offset",
        "on",
        "or",
        "over",
        "qualify",
        "rename",
        "replace",
        "rollup",
        "select",
        "sets",
        "some",
        "then",
        "to",
        "union",
        "using",
        "when",
        "where",
    ]
)

"""None of them is a function that is not allowed: some may be read as one."""

KEYWORDS_BEFORE_TEXT: Final = KEYWORDS_BEFORE_PARENTHESIS | frozenset(
    [
        "glob",
        "both",
        "date",
        "datetime",
        "interval",
        "leading",
        "map",
        "placing",
        "separator",
        "time",
        "timestamp",
        "timestamptz",
        "trailing",
        "zone",
    ]
)
"""Words that may stand directly before a string: `x LIKE 'a%'`, `DATE '2013-01-01'`. Any other
word there would be a literal of a type that the gate does not know, or an escape prefix."""

_SYSTEM_VIEWS = """
character_sets check_constraints constraint_column_usage constraint_table_usage
key_column_usage referential_constraints table_constraints sqlite_master sqlite_schema
sqlite_temp_master sqlite_temp_schema information_schema pg_catalog
"""

SYSTEM_NAMES: Final = frozenset(_SYSTEM_VIEWS.split())
SYSTEM_PREFIXES: Final = ("duckdb_", "pragma_", "pg_")
"""No dataset or column may be called like the engine's own views, so that none is reached by a
reading of the text that differs from the gate's."""
