"""Queries of the portable subset. Where there is an ORDER BY, it leaves no two rows in doubt."""

from __future__ import annotations

from typing import Final

QUERIES: Final = tuple(
    line.strip()
    for line in r"""
select * from fact order by id
select count(*) from fact
select count(*) as n, sum(n) as s, avg(n) as a, min(n) as lo, max(n) as hi from fact
select sum(g) as s, avg(g) as a from fact
select sum(m) as s, avg(m) as a, min(m) as lo, max(m) as hi from fact
select sum(x) as s, avg(x) as a from fact
select min(s) as lo, max(s) as hi, count(distinct s) as ds, count(s) as cs from fact
select min(d) as a, max(d) as b, min(ts) as c, max(ts) as e from fact
select s, count(*) as n from fact group by s order by s
select s, count(*) as n from fact group by s order by n desc, s limit 5
select k, s, count(*) as n, sum(m) as m from fact group by k, s order by k nulls first, s desc nulls last, n
select k, sum(n) as total from fact group by k having sum(n) > 0 order by total desc
select k, sum(n) / count(*) as mean from fact group by k order by k
select sum(n) / nullif(sum(k), 0) as q, sum(m) / nullif(sum(n), 0) as r from fact
select id, n / 2 as h, n // 7 as w, n % 7 as r, -n as neg, abs(n) as ab, n + 1 as p, n - k as d, n * k as t from fact order by id
select id, g + 1 as a, g * 3 as b, -g as c, abs(g) as e from fact where g between -100000 and 100000 order by id
select id, m + 1 as a, m * 2 as b, m * m as c, m - 0.001 as d, 1.5 * m as e, m * (1 - m) as f, m / 3 as q from fact order by id
select id, x + 1 as a, x * 2.5 as b, x / 4 as c, x - n as e, x * m as f from fact order by id
select id, n from fact where n > 1.5 and m < 100 and x >= -2.25 order by id
select id from fact where s = 'a' order by id
select id from fact where s <> 'a' order by id
select id from fact where s < 'b' order by id
select id from fact where s in ('A', 'b', 'a ') order by id
select id from fact where s not in ('A', 'b') order by id
select id from fact where s like 'a%' order by id
select id from fact where s like '%\%' order by id
select id from fact where s like 'a!%' escape '!' order by id
select id from fact where s like '_ber' order by id
select id from fact where s not like '%b%' order by id
select id from fact where s is null or b order by id
select id from fact where not b and n is not null order by id
select id from fact where b = true or (n = 5 and k <> 2) order by id
select id, b, not b as nb, n > 0 as pos, s = 'a' as isa, b and n > 0 as both from fact order by id
select id, d, ts from fact where d >= '2020-02-01' and d < date '2020-06-01' order by d desc, id
select id from fact where ts between '2020-03-01' and timestamp '2020-06-01 12:00:00' order by id
select id from fact where ts > d order by id
select date_trunc('month', d) as mo, count(*) as n from fact group by 1 order by 1
select date_trunc('week', d) as w, count(*) as n from fact group by all order by w
select date_trunc('quarter', ts) as q, date_trunc('year', ts) as y, date_trunc('day', ts) as dd, date_trunc('hour', ts) as h, date_trunc('minute', ts) as mi from fact order by id
select year(d) as y, quarter(d) as q, month(d) as mo, day(d) as dd, dayofweek(d) as dow, extract(isodow from d) as isod, extract(doy from d) as doy, extract(week from d) as w from fact order by id
select hour(ts) as h, minute(ts) as m, extract(second from ts) as s, year(ts) as y, date_part('month', ts) as mo from fact order by id
select id, d + interval 1 month as a, d - interval 3 day as b, ts + interval 1 hour as c, d + 3 as e, d - 10 as f, ts - interval 2 week as g2, ts + interval 5 minute as h, d + interval 1 year as y from fact order by id
select id, d - date '2020-01-01' as days from fact order by id
select id, cast(ts as date) as a, cast(d as timestamp) as b, cast(n as varchar) as c, cast(m as double) as e, cast(n as double) as f, cast(n as bigint) as h, cast(k as decimal(12, 2)) as i from fact order by id
select id, coalesce(n, 0) as a, coalesce(m, 0) as b, coalesce(s, 'none') as c, coalesce(x, 0) as e, coalesce(d, date '2020-01-01') as f, coalesce(b, false) as g2, coalesce(n, k, 5) as h from fact order by id
select id, nullif(n, 0) as a, nullif(s, 'a') as b, nullif(m, 1) as c from fact order by id
select id, case when n > 0 then 'pos' when n < 0 then 'neg' else 'zero' end as sign, case k when 1 then 10 when 2 then 20 end as c, case when b then n else m end as e, if(b, n, 0) as f, case when b then x else 0 end as h from fact order by id
select count(*) filter (where b) as a, count(n) filter (where b) as c, sum(n) filter (where s = 'a') as e, avg(m) filter (where k > 2) as f, sum(case when b then 1 else 0 end) as h from fact
select k, count(distinct s) as a, count(distinct n) as c, sum(distinct k) as e from fact group by k order by k
select f.k, d.label, count(*) as n, sum(f.m * d.w) as v from fact f join dim d on f.k = d.k group by f.k, d.label order by f.k, d.label
select d.label, count(f.id) as n from dim d left join fact f on d.k = f.k and f.n > 0 group by d.label order by d.label
select id, label from fact left join dim using (k) order by id
select k, label, n from fact join dim using (k) where n > 900 order by k, n, label
select f.id, d.k from fact f, dim d where f.k = d.k and d.grp = 1 order by f.id
select a.id, b2.id as other from fact a join fact b2 on a.id = b2.id + 1 where a.k = 3 order by a.id
select f.id from fact f join dim d on f.s = d.label order by f.id
select distinct s, b from fact order by s, b
select distinct k from fact order by k desc nulls first limit 3
with t as (select k, sum(m) as total from fact group by k) select k, total, total * 2 as twice from t where total > 0 order by total
with a as (select * from fact where b), c as (select k, count(*) as n from a group by k) select c.k, c.n, d.label from c join dim d on d.k = c.k order by c.k
select avg(total) as a from (select k, sum(n) as total from fact group by k) t
select id from fact where k in (select k from dim where grp = 1) order by id
select id, m from fact where m > (select avg(m) from fact) order by id
select k, n from fact where b union all select k, grp from dim order by 1, 2
select s from fact union select label from dim order by s
select id, s || '-' || s as ss, length(s) as len, substring(s, 1, 2) as su, left(s, 1) as l1 from fact order by id
select id, n is distinct from k as a, n is not distinct from k as c, s is distinct from 'a' as e from fact order by id
select id from fact order by n desc nulls first, s asc, id limit 10 offset 5
select id, s, n from fact order by id offset 390
select n, id from fact order by 1, 2 desc limit 7
select sum(n) from fact where n > 100000
select count(*) from fact where false
select k, count(*) from fact where n > 100000 group by k
select k as kk, count(*) as n from fact group by kk having count(*) > 10 order by n desc, kk
select n * 1.5 as a, count(*) as c from fact group by a order by c desc, a limit 5
select sum(n * k) as a, sum(m * m) as b, sum(g) + sum(n) as c, sum(m) * 1.5 as e, sum(n) * 2 as f, count(*) * 2 as h, sum(m) + 1 as i from fact
select min(x) as a, max(x) as b, min(g) as c, max(g) as e, sum(abs(n)) as f from fact
select id, -5 as a, 1.50 as b, 1e3 as c, 'it''s' as e, 'back\slash' as f, true as h, date '2020-02-29' as i, timestamp '2020-02-29 01:02:03.000004' as j from fact where id < 2 order by id
select x, count(*) as n from fact group by x order by x
select d, count(*) as n from fact where d is not null group by d order by n desc, d limit 10
select label, w from dim order by label, w
select id from fact where s > 'Z' and s >= 'a ' order by s desc, id
select b, count(*) as n, avg(x) as a from fact group by b order by b nulls first
select f.s, max(f.ts) as last, min(f.d) as first from fact f where f.ts >= '2020-03-01 10:00:00' group by f.s order by last desc nulls last, f.s
select id from fact where n = 5 or n in (1, 2, -3) or m in (1, 2.55) order by id
select id, g from fact where g > 9223372036854775000 or g < -9223372036854775000 order by id
select id from fact where n between -10 and 10.5 and id % 3 = 1 order by id
select ID, Fact.N from FACT order by Id limit 3
select t.s as "Grün" from fact as t where id = 7
select id from fact where n in (select k from fact) and (b or m > 0) order by id
select k, sum(m * (1 - m)) as a, sum(m * (1 - m) * (1 + m)) as b from fact group by k order by k
select sum(price * (1 - part)) as r, sum(price * (1 - part) * (1 + part)) as c, avg(price * part) as a from (select cast(n as decimal(15, 2)) as price, cast(k as decimal(15, 2)) as part from fact) t
select id from fact where starts_with(s, 'a') or ends_with(s, 'b') or contains(s, '\') order by id
select id, contains(s, '%') as a, starts_with(s, '') as b, ends_with(s, ' ') as c, not contains(s, '_') as d from fact order by id
select k, bool_or(b) as a, bool_and(b) as c, coalesce(bool_or(n > 900), false) as e, bool_and(s <> 'a') as f from fact group by k order by k
select bool_or(b) as a, bool_and(b) as c from fact where false
select id, divide(n, 7) as a, divide(n, -7) as b, n % -7 as c, divide(n - n % 7, 7) as d, (n % 3) + (g % 1000) as e from fact order by id
select id, ts + interval '1' month - interval '1' day as a, date_trunc('month', d) + interval '3' month as b from fact order by id
select k, count(*) as c from fact where k in (select grp from dim where w > 1) and n in (select n from fact where b) group by k order by k
""".splitlines()  # noqa: E501
    if line.strip()
)
"""Over the tables of `olap_world`."""

EDGE_QUERIES: Final = tuple(
    line.strip()
    for line in r"""
select id, -2147483648 as a, -9223372036854775807 as b, 2147483648 as e, -0e0 as f from edge order by id
select id, (m * m) - c as a, m * m * m as b, m * m + m as e from edge where abs(m) < 1000 order by id
select id, cast(m * 100 as decimal(18, 4)) - c as a from edge order by id
select id, nullif(-q, 0) as a, nullif(q * -1.5e0, 0e0) as b, nullif(q / -3, 0) as e, nullif(x, 0) as f from edge order by id
select id from edge order by case when id % 2 = 0 then -q else q end, id
select x, count(*) as n from edge group by x order by x
select count(distinct case when id % 2 = 0 then -q else q end) as n from edge
select distinct cast((l // 3) as varchar) as c0, cast(l as varchar) as c1, cast(i as varchar) as c2 from edge
select id, date_trunc('week', d) as b, d - date '1970-01-01' as e from edge where year(d) between 1900 and 2100 order by id
select id, s from edge order by s, id
select s, count(*) as n, min(t) as a, max(t) as b, count(distinct t) as e from edge group by s order by s
select id, length(s) as n, substring(s, 1, 1) as a, substring(s, 2) as b, left(s, 2) as e, s || t as f from edge order by id
select id, s = t as a, s < t as b, s in ('a', 'A', 'a ', 'ä') as e, s like '_' as f, s like '%\%' as g, s like '%!%%' escape '!' as h from edge order by id
select id from edge where (s || substring(s, 1, 0)) not in (substring(case when c = c then t when c = 1 then t end, 1, 0), '%') order by id
select a.id, b.id from edge a join other b on a.s = b.t order by 1, 2
select s from edge union select t from other order by 1
select sum(l) as a, avg(l) as b, sum(m) as f, avg(m) as g, min(l) as h, max(l) as i from edge
""".splitlines()  # noqa: E501
    if line.strip()
)
"""Over the tables of `portable_random`: each once came back otherwise, or is near to what did."""
