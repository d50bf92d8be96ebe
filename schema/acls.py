"""What the catalog is asked about roles and privileges: see inturn.schema.privileges."""

from __future__ import annotations

#: A partition, and the sequence of a column, are their table's: bare is the name of that.
RELATIONS = """
    SELECT '{schema}.' || pg_catalog.quote_ident(c.relname) AS name, coalesce(t.relname, c.relname) AS bare,
           (CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END)::"char" AS kind, c.oid, c.relacl, c.relowner
    FROM pg_catalog.pg_class c
    LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
        AND d.refclassid = d.classid AND d.deptype IN ('a', 'i') AND (c.relkind = 'S' OR c.relispartition)
    LEFT JOIN pg_catalog.pg_class t ON t.oid = d.refobjid
    WHERE c.relnamespace = pg_catalog.to_regnamespace('{schema}') AND c.relkind IN ('r', 'p', 'v', 'S')"""
#: Whether somebody has had something since the object was made, or the database copied by CREATE DATABASE.
#: The catalog has a row for each grantee of an object, which another transaction has made where somebody has
#: granted it. The object's own rows are for its schema, anew when a function is replaced, and for its owner.
AT_ONCE = """NOT EXISTS (
              SELECT FROM pg_catalog.pg_shdepend s
              WHERE s.dbid = b.oid AND s.classid = o.class AND s.objid = o.id AND s.objsubid = 0
                AND s.refclassid = 'pg_catalog.pg_authid'::regclass AND s.refobjid = a.grantee
                AND s.deptype = 'a' AND s.xmin <> b.xmin AND s.xmin <> ALL (ARRAY(
                  SELECT m.xmin FROM pg_catalog.pg_depend m
                  WHERE m.classid = o.class AND m.objid = o.id AND m.objsubid = 0
                    AND m.refclassid = 'pg_catalog.pg_namespace'::regclass
                  UNION ALL
                  SELECT m.xmin FROM pg_catalog.pg_shdepend m
                  WHERE m.dbid = b.oid AND m.classid = o.class AND m.objid = o.id AND m.deptype = 'o')))"""
#: Whoever has let our roles, or everybody, have something by an option to grant it, is named too. So is
#: whoever has got what default privileges give when it was made, as by a restore; but not for using the
#: schema, which opens nothing in it, nor for the receiver's function, which is granted to services
#: themselves. In the schema nobody else may create, whoever has granted it.
ACTUAL = """
    SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::pg_catalog.regrole::text END,
           a.privilege_type || o.part, o.kind, o.name, o.bare, a.is_grantable, d.given IS NOT NULL
    FROM (SELECT 'SCHEMA' AS kind, n.oid::pg_catalog.regnamespace::text AS name, '' AS bare, '' AS part,
                 'n'::"char" AS made, NULL::oid AS class, n.oid AS id, n.nspowner AS owner,
                 coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner)) AS acl
          FROM pg_catalog.pg_namespace n WHERE n.nspname = '{schema}'
          UNION ALL
          SELECT 'FUNCTION', p.oid::pg_catalog.regprocedure::text, p.proname, '', 'f', p.tableoid, p.oid,
                 p.proowner, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))
          FROM pg_catalog.pg_proc p
          WHERE p.pronamespace = pg_catalog.to_regnamespace('{schema}')
          UNION ALL
          SELECT 'TABLE', c.name, c.bare, '', (CASE c.kind WHEN 's' THEN 'S' ELSE 'r' END)::"char",
                 'pg_catalog.pg_class'::regclass::oid, c.oid, c.relowner,
                 coalesce(c.relacl, pg_catalog.acldefault(c.kind, c.relowner))
          FROM ({relations}) c
          UNION ALL
          SELECT 'TABLE', c.name, c.bare, ' (' || pg_catalog.quote_ident(t.attname) || ')', NULL, NULL, c.oid,
                 c.relowner, t.attacl
          FROM ({relations}) c JOIN pg_catalog.pg_attribute t ON t.attrelid = c.oid
          WHERE t.attacl IS NOT NULL AND NOT t.attisdropped) o
    CROSS JOIN LATERAL pg_catalog.aclexplode(o.acl) a
    LEFT JOIN LATERAL (
        SELECT true AS given
        FROM pg_catalog.pg_default_acl d CROSS JOIN LATERAL pg_catalog.aclexplode(d.defaclacl) g
        CROSS JOIN (SELECT b.oid, b.xmin FROM pg_catalog.pg_database b
                    WHERE b.datname = pg_catalog.current_database()) b
        WHERE d.defaclobjtype = o.made AND d.defaclnamespace IN (0, pg_catalog.to_regnamespace('{schema}'))
          AND g.grantee = a.grantee AND g.privilege_type = a.privilege_type AND a.grantee NOT IN (0, o.owner)
          AND CASE o.made WHEN 'n' THEN a.privilege_type = 'CREATE' ELSE o.bare <> 'accept' AND {at_once} END
        LIMIT 1) d ON true
    WHERE a.grantee = 0 OR a.grantee::pg_catalog.regrole::text = ANY ('{{{roles}}}') OR d.given
       OR a.is_grantable AND EXISTS (
           SELECT FROM pg_catalog.aclexplode(o.acl) b
           WHERE b.grantor = a.grantee AND b.privilege_type = a.privilege_type
             AND (b.grantee = 0 OR b.grantee::pg_catalog.regrole::text = ANY ('{{{roles}}}')))"""
POWERFUL = """
    SELECT rolname, rolsuper OR rolcreaterole OR rolbypassrls FROM pg_catalog.pg_roles
    WHERE rolname = ANY ('{{{roles}}}')"""
TABLES = """
    SELECT relname FROM pg_catalog.pg_class
    WHERE relname IN ('topic', 'accepted') AND relnamespace = pg_catalog.to_regnamespace('{schema}')"""
ALIKE = """
    SELECT f.given, p.oid::pg_catalog.regprocedure::text
    FROM pg_catalog.unnest(ARRAY[{functions}]::text[]) f (given)
    JOIN pg_catalog.pg_proc p ON p.oid = pg_catalog.to_regprocedure(f.given)"""
